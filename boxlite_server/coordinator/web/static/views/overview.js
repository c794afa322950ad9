// What a box is, and what it does now.

import { button, field, fill, h, put, svg, table, tell } from "../dom.js";
import { age, bytes, duration, lifetime, mib, time } from "../format.js";

const MEASURE_SECONDS = 2;
const POINTS = 60; // of a curve

export async function overview(view) {
  const facts = h("dl", { class: "facts" });
  const ports = h("section", {});
  const gauges = new Gauges(view);
  const commands = new Commands(view);
  const draw = () => {
    fill(facts, describe(view.box));
    fill(ports, view.box.ports?.length ? [h("h2", {}, "Ports"), portTable(view.box)] : null);
    gauges.draw();
  };
  view.onChange(draw);
  draw();
  await commands.read();
  gauges.begin();
  return [gauges.element, facts, ports, commands.element];
}

function describe(box) {
  const list = (values) => values.map((value) => h("code", {}, value));
  const at = (text) => text && h("time", { datetime: text, title: time(text) }, `${age(text)} ago`);
  const labels = Object.entries(box.labels || {}).map(([key, value]) => `${key}=${value}`);
  const env = Object.entries(box.env || {}).map(([key, value]) => (value === null ? key : `${key}=${value}`)); // null: not for this key
  return [
    ["Image", h("code", {}, box.image)],
    ["CPUs", String(box.cpus)],
    ["Memory", mib(box.memory_mib)],
    ["Disk", box.disk_size_gb ? `${box.disk_size_gb} GB` : "no limit"],
    ["Worker", box.worker],
    ["Created", at(box.created_at)],
    ["Started", at(box.started_at)],
    ["Stopped", at(box.stopped_at)],
    ["Exit code", box.exit_code === null ? null : String(box.exit_code)],
    ["Directory", box.working_dir && h("code", {}, box.working_dir)],
    ["User", box.user && h("code", {}, box.user)],
    ["Network", { enabled: "on", disabled: "off" }[box.network_mode]],
    ["Isolation", box.security],
    ["Stops when idle", lifetime(box.auto_stop)],
    ["Removed when stopped", lifetime(box.auto_delete)],
    ["Started by commands", box.auto_resume ? "yes" : "no"],
    ["Supervisor", box.supervisor],
    ["Entrypoint", box.entrypoint?.length ? list([box.entrypoint.map(quoted).join(" ")]) : null],
    ["Command", box.cmd?.length ? list([box.cmd.map(quoted).join(" ")]) : null],
    ["Labels", labels.length ? list(labels) : null],
    ["Environment", env.length ? [h("details", {}, h("summary", {}, count(env.length, "variable")), list(env))] : null],
    ["Mounts", box.volumes?.length ? list(box.volumes.map((mount) => `${mount.managed_volume || mount.host_path} → ${mount.guest_path}${mount.read_only ? " (read-only)" : ""}`)) : null],
  ].filter(([, value]) => value !== null && value !== undefined && value !== "" && value !== false)
    .map(([name, value]) => h("div", { class: Array.isArray(value) ? "wide" : null }, h("dt", {}, name), h("dd", {}, value)));
}

const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

function portTable(box) {
  const rows = box.ports.map((port) => [`${port.guest_port}/${port.protocol}`, port.address ? h("code", {}, port.address) : "while it runs", port.host_ip || "127.0.0.1"]);
  return table("Ports", ["In the box", "Reached at", "Listens on"], rows);
}

/** CPU and memory of a running box, measured while they are shown. */
class Gauges {
  constructor(view) {
    this.view = view;
    this.cpu = new Curve("CPU", (percent) => `${percent.toFixed(percent < 10 ? 1 : 0)} %`);
    this.memory = new Curve("Memory", bytes);
    this.rest = h("p", { class: "muted rest" });
    this.element = h("section", { class: "gauges", "aria-label": "Now" }, this.cpu.element, this.memory.element, this.rest);
    this.draw();
  }

  /** Take the limits of the box, which may have changed. */
  draw() {
    this.element.hidden = !this.view.isUp;
    this.cpu.limit(100 * this.view.box.cpus);
    this.memory.limit(this.view.box.memory_mib * 1048576);
  }

  begin() {
    this.measure();
    this.view.page.every(MEASURE_SECONDS, () => this.measure());
  }

  async measure() {
    if (!this.view.isUp) return;
    const found = await this.view.api.get(`${this.view.path}/metrics`, null, this.view.page.signal).catch(() => null);
    if (!found) return;
    this.cpu.add(found.cpu_percent);
    this.memory.add(found.memory_bytes);
    const said = [
      count(found.commands_executed_total ?? 0, "command"),
      found.network_bytes_received !== null && found.network_bytes_received !== undefined && `${bytes(found.network_bytes_received)} received`,
      found.network_bytes_sent !== null && found.network_bytes_sent !== undefined && `${bytes(found.network_bytes_sent)} sent`,
      found.memory_limit_kills_total > 0 && `${count(found.memory_limit_kills_total, "kill")} at the memory limit`,
    ];
    put(this.rest, said.filter(Boolean).join(" · "));
  }
}

class Curve {
  constructor(name, format) {
    this.most = 0;
    this.format = format;
    this.values = [];
    this.line = svg("polyline", { fill: "none", "stroke-width": 1.5, "vector-effect": "non-scaling-stroke" });
    this.area = svg("polygon", {});
    this.now = h("strong", {}, "–");
    this.limits = h("span", { class: "muted" });
    this.element = h("figure", {}, h("figcaption", {}, name, " ", this.now, this.limits),
      svg("svg", { viewBox: "0 0 100 40", preserveAspectRatio: "none", "aria-hidden": "true" }, this.area, this.line));
  }

  limit(most) {
    this.most = most;
    put(this.limits, ` of ${this.format(most)}`);
  }

  add(value) {
    if (value === null || value === undefined) return;
    this.values = [...this.values, value].slice(-POINTS);
    put(this.now, this.format(value));
    const top = Math.max(this.most * 0.05, ...this.values) * 1.1;
    const first = POINTS - this.values.length;
    const points = this.values.map((one, index) => `${((first + index) * 100) / (POINTS - 1)},${40 - (40 * one) / top}`);
    this.line.setAttribute("points", points.join(" "));
    this.area.setAttribute("points", [`${(first * 100) / (POINTS - 1)},40`, ...points, "100,40"].join(" "));
  }
}

/** The command of an execution in one line, as far as its worker keeps it. */
const line = (one) => [one.command, ...one.args].join(" ") + (one.command_truncated ? " …" : "");

/** The executions that the box's worker knows of. */
class Commands {
  constructor(view) {
    this.view = view;
    this.body = h("div", {});
    this.element = h("section", {}, h("h2", {}, "Commands"), this.body);
    view.page.every(3, () => this.read()); // no event tells of commands
  }

  async read() {
    this.element.hidden = !this.view.isUp;
    if (!this.view.isUp) return;
    const found = await this.view.api.get(`${this.view.path}/executions`, null, this.view.page.signal).catch(() => null);
    if (!found) return; // what is shown stays
    const rows = [...found.executions].reverse().map((one) => [
      h("code", { title: one.execution_id }, one.execution_id.slice(0, 12)),
      one.command && h("code", { class: "command", title: line(one) }, line(one)),
      h("span", { class: "badge", data: { status: one.status } }, one.status),
      one.exit_code === null || one.exit_code === undefined ? "" : String(one.exit_code),
      h("time", { datetime: one.started_at, title: time(one.started_at), data: { age: "" } }, age(one.started_at)),
      one.duration_ms === null || one.duration_ms === undefined ? "" : one.duration_ms < 1000 ? `${one.duration_ms} ms` : duration(one.duration_ms),
      one.error_message || "",
      this.view.page.may("box:exec") && one.status === "running" && button("Kill", () => this.kill(one), { class: "quiet", "aria-label": `Kill ${one.execution_id}` }),
    ]);
    fill(this.body, table("Commands", ["Id", "Command", "State", "Exit", "Age", "Took", "Reason", ""], rows, "No command ran in the last minutes."));
  }

  async kill(execution) {
    await this.view.api.remove(`${this.view.path}/executions/${execution.execution_id}`);
    await this.read();
  }
}


/** Ask for a name, and make a copy of the box. */
export function cloneBox(view) {
  return new Promise((resolve) => {
    const name = h("input", { autocomplete: "off", spellcheck: "false", placeholder: "or none", pattern: "[a-zA-Z0-9][a-zA-Z0-9._\\-]*", maxlength: 128 });
    const problem = h("p", { class: "problem", role: "alert" });
    const dialog = h("dialog", { class: "ask", "aria-labelledby": "clone-title", on: { close: () => { dialog.remove(); resolve(); } } },
      h("form", { on: { submit: async (event) => {
        event.preventDefault();
        fill(problem);
        try {
          const box = await view.api.post(`${view.path}/clone`, name.value ? { name: name.value } : {});
          dialog.close();
          tell(`${box.name || box.box_id} is a copy of ${view.label}.`);
          location.hash = `#/boxes/${box.box_id}`;
        } catch (error) {
          fill(problem, error.message);
        }
      } } },
        h("h2", { id: "clone-title" }, `Clone ${view.label}`),
        field("Name of the copy", name), problem,
        h("div", { class: "buttons" }, button("Cancel", () => dialog.close()), h("button", { type: "submit", class: "primary" }, "Clone"))));
    document.body.append(dialog);
    dialog.showModal();
    name.focus();
  });
}
