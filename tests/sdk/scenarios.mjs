// What users do with the released Node SDK: `node scenarios.mjs NAME IMAGE`, with the cluster in the environment.
// It ends with exit code 0, or with the assertion that failed.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { ApiKeyCredential, BoxliteRestOptions, CodeBox, JsBoxlite, SimpleBox } from "@boxlite-ai/boxlite";

const [name, image] = process.argv.slice(2);

const runtime = () =>
  JsBoxlite.rest(
    new BoxliteRestOptions({
      url: process.env.BOXLITE_REST_URL,
      credential: ApiKeyCredential.fromEnv() ?? undefined,
      pathPrefix: process.env.BOXLITE_REST_PATH_PREFIX,
    }),
  );
const options = (changes = {}) => ({ image, cpus: 1, memoryMib: 128, ...changes });
const unique = (word) => `${word}-${randomUUID().slice(0, 8)}`;

/** Use a started box, which is removed at the end. */
async function running(changes, use) {
  const rt = runtime();
  const box = await rt.create(options(changes), unique("box"));
  try {
    await box.start();
    await use(box, rt);
  } finally {
    await rt.remove(box.id, true);
  }
}

async function text(stream) {
  const parts = [];
  for (let part; (part = await stream.next()) !== null; ) parts.push(part);
  return parts.join("");
}

/** Exit code, stdout, stderr. */
async function outcome(execution) {
  const [out, err] = await Promise.all([text(await execution.stdout()), text(await execution.stderr())]);
  return [(await execution.wait()).exitCode, out, err];
}

const scenarios = {
  async lifecycle() {
    const rt = runtime();
    const name = unique("web");
    const box = await rt.create(options(), name);
    assert.equal(box.id.length, 12);
    assert.equal((await rt.get(name)).id, box.id);
    assert.equal(await rt.get("nosuch"), null);
    let info = await rt.getInfo(name);
    assert.deepEqual([info.id, info.name, info.image, info.cpus, info.memoryMib], [box.id, name, image, 1, 128]);
    assert.match(info.state.status, /configured/i);
    assert.ok((await rt.listInfo()).some((one) => one.id === box.id));
    await box.start();
    assert.equal((await rt.getInfo(name)).state.running, true);
    await assert.rejects(rt.create(options(), name), /exists/);
    await assert.rejects(rt.remove(name, false), /running/);
    await box.stop();
    assert.match((await rt.getInfo(box.id)).state.status, /stopped/i);
    await rt.remove(name, false);
    assert.equal(await rt.get(name), null);
  },

  async output() {
    await running({ env: [{ key: "GREETING", value: "hello" }] }, async (box) => {
      const script = "echo out $GREETING $X; pwd; echo err >&2; exit 3";
      const execution = await box.exec("sh", ["-c", script], [["X", "y"]], false, null, null, "/tmp");
      assert.deepEqual(await outcome(execution), [3, "out hello y\n/tmp\n", "err\n"]);
      await assert.rejects(box.exec("nosuchcommand"), /not found/);
      const large = await outcome(await box.exec("sh", ["-c", "yes 0123456789abcde | head -c 10485760"]));
      assert.equal(large[1].length, 10485760);
    });
  },

  async stdin() {
    await running({}, async (box) => {
      const execution = await box.exec("cat");
      const pipe = await execution.stdin();
      await pipe.writeString("one\n");
      await pipe.write(Buffer.from("zwölf\n"));
      await pipe.close();
      assert.deepEqual(await outcome(execution), [0, "one\nzwölf\n", ""]);
    });
  },

  async endings() {
    await running({}, async (box) => {
      const killed = await box.exec("sleep", ["600"]);
      await killed.kill();
      assert.notEqual((await outcome(killed))[0], 0);
      const signalled = await box.exec("sleep", ["600"]);
      await signalled.signal(15);
      assert.notEqual((await outcome(signalled))[0], 0);
      const late = await box.exec("sh", ["-c", "echo begun; sleep 600"], null, false, null, 1);
      const [code, out] = await outcome(late);
      assert.notEqual(code, 0);
      assert.equal(out, "begun\n");
    });
  },

  async interleaved() {
    await running({}, async (box) => {
      const numbers = Array.from({ length: 20 }, (_, number) => number);
      const results = await Promise.all(
        numbers.map(async (number) => outcome(await box.exec("sh", ["-c", `echo ${number}; exit ${number}`]))),
      );
      assert.deepEqual(results, numbers.map((number) => [number, `${number}\n`, ""]));
    });
  },

  async network() {
    for (const network of [{ mode: "disabled" }, { outbound: { mode: "disabled" } }, { mode: "enabled" }]) {
      await running({ network }, async (box) => {
        const [, out] = await outcome(await box.exec("ls", ["/sys/class/net"]));
        assert.equal(out === "lo\n", JSON.stringify(network).includes("disabled"), out);
      });
    }
  },

  async simple_box() {
    const rt = runtime();
    const name = unique("simple");
    const box = new SimpleBox({ image, memoryMib: 128, runtime: rt, name, env: { WHO: "me" } });
    try {
      const result = await box.exec("sh", "-c", "echo out $WHO; echo err >&2; exit 4");
      assert.deepEqual([result.exitCode, result.stdout, result.stderr], [4, "out me\n", "err\n"]);
      await box.stop();
      const again = new SimpleBox({ image, runtime: rt, name, reuseExisting: true });
      assert.equal((await again.exec("echo", "back")).stdout, "back\n");
    } finally {
      await rt.remove(name, true);
    }
  },

  async code_box() {
    const rt = runtime();
    const box = new CodeBox({ image, memoryMib: 128, runtime: rt, name: unique("code") });
    try {
      const stand_in = "mkdir -p $(dirname $0); printf '#!/bin/sh\\necho ran: $2\\n' > $0; chmod +x $0";
      for (const path of ["/usr/local/bin/python", "/bin/python", "/bin/python3"]) await box.exec("sh", "-c", stand_in, path);
      assert.equal(await box.run("print(1 + 1)"), "ran: print(1 + 1)\n");
    } finally {
      await rt.remove(box.name ?? (await box.getId()), true);
    }
  },
};


await scenarios[name]();
process.exit(0);
