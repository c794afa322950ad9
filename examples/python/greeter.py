"""A box through its life, with the client that is generated for Python."""

import base64
import json
import os

import boxlite_client as boxlite

GREET = (
    "echo What is your name?; until [ -e /tmp/name ]; do sleep 0.1; done; read -r name < /tmp/name; echo Hello, $name."
)

configuration = boxlite.Configuration(
    host=os.environ.get("BOXLITE_REST_URL", "http://127.0.0.1:8200"),
    access_token=os.environ.get("BOXLITE_API_KEY"),
)


def events(stream):
    """Yield the events of a stream, each with its data, as they come."""
    event = ""
    for line in stream:
        field, _, value = line.decode().rstrip("\n").partition(": ")
        if field == "event":
            event = value
        elif field == "data":
            yield event, json.loads(value)


with boxlite.ApiClient(configuration) as api:
    boxes, executions, files = boxlite.BoxesApi(api), boxlite.ExecutionsApi(api), boxlite.FilesApi(api)
    wanted = boxlite.CreateBoxRequest(name="greeter-in-python", image="alpine:latest", start=True)
    box = boxes.create_box(wanted)
    try:
        command = boxlite.StartExecutionRequest(command="sh", args=["-c", GREET])
        execution = executions.start_execution(box.box_id, command)
        stream = executions.stream_execution_output_without_preload_content(box.box_id, execution.execution_id)
        for event, data in events(stream):
            if event == "stdout":
                text = base64.b64decode(data["data"]).decode()
                print(text, end="")
                if text.endswith("?\n"):
                    files.write_file(box.box_id, "/tmp/name", b"Ada\n")
            elif event == "exit":
                print("exit code:", data["exit_code"])
        print("file:", bytes(files.read_file(box.box_id, "/tmp/name")).decode(), end="")
        try:
            boxes.create_box(wanted)
        except boxlite.ApiException as exc:
            print("error:", exc.data.error.code.value)
    finally:
        boxes.remove_box(box.box_id, force=True)
