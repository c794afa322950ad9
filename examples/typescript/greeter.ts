// A box through its life, with the client that is generated for TypeScript.
import {
  BoxesApi,
  Configuration,
  ErrorResponseFromJSON,
  ExecutionsApi,
  FilesApi,
  ResponseError,
} from "./boxlite/index.js";

const GREET =
  "echo What is your name?; until [ -e /tmp/name ]; do sleep 0.1; done; read -r name < /tmp/name; echo Hello, $name.";

const configuration = new Configuration({
  basePath: process.env.BOXLITE_REST_URL ?? "http://127.0.0.1:8200",
  accessToken: process.env.BOXLITE_API_KEY,
});
const boxes = new BoxesApi(configuration);
const executions = new ExecutionsApi(configuration);
const files = new FilesApi(configuration);

/** The events of a stream, each with its data, as they come. */
async function* events(stream: ReadableStream<Uint8Array>) {
  const decoder = new TextDecoder();
  let event = "";
  let rest = "";
  for await (const bytes of stream) {
    const lines = (rest + decoder.decode(bytes, { stream: true })).split("\n");
    rest = lines.pop()!;
    for (const line of lines) {
      if (line.startsWith("event: ")) event = line.slice("event: ".length);
      if (line.startsWith("data: ")) yield { event, data: JSON.parse(line.slice("data: ".length)) };
    }
  }
}

const createBoxRequest = { name: "greeter-in-typescript", image: "alpine:latest", start: true };
const { boxId } = await boxes.createBox({ createBoxRequest });
try {
  const startExecutionRequest = { command: "sh", args: ["-c", GREET] };
  const { executionId } = await executions.startExecution({ boxId, startExecutionRequest });
  const { raw } = await executions.streamExecutionOutputRaw({ boxId, executionId });
  for await (const { event, data } of events(raw.body!)) {
    if (event === "stdout") {
      const text = Buffer.from(data.data, "base64").toString();
      process.stdout.write(text);
      if (text.endsWith("?\n")) {
        await files.writeFile({ boxId, path: "/tmp/name", body: new Blob(["Ada\n"]) });
      }
    } else if (event === "exit") {
      console.log("exit code:", data.exit_code);
    }
  }
  const file = await files.readFile({ boxId, path: "/tmp/name" });
  process.stdout.write(`file: ${await file.text()}`);
  await boxes.createBox({ createBoxRequest }).catch(async (error) => {
    if (!(error instanceof ResponseError)) throw error;
    const { error: detail } = ErrorResponseFromJSON(await error.response.json());
    console.log("error:", detail.code);
  });
} finally {
  await boxes.removeBox({ boxId, force: true });
}
