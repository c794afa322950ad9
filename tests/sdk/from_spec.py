"""A box through its life with the generated client: `python from_spec.py URL IMAGE`."""

import sys

import boxlite_client as client

url, image = sys.argv[1:]

with client.ApiClient(client.Configuration(host=url)) as api:
    boxes, executions = client.BoxesApi(api), client.ExecutionsApi(api)
    assert client.SystemApi(api).get_readiness().status == "ready"
    assert client.IdentityApi(api).get_current_principal().sub == "anonymous"
    request = client.CreateBoxRequest(image=image, memory_mib=128, name="generated", labels={"made": "so"})
    request.network = client.CreateBoxRequestNetwork(client.NetworkSpec(mode="disabled"))
    box = boxes.create_box("acme", request)
    try:
        assert box.status == client.BoxStatus.CONFIGURED
        assert [one.box_id for one in boxes.list_boxes("acme", label=["made=so"]).boxes] == [box.box_id]
        boxes.box_exists("acme", "generated")
        command = client.StartExecutionRequest(command="sh", args=["-c", "echo hello; exit 3"])
        execution_id = executions.start_execution("acme", "generated", command).execution_id
        events = executions.stream_execution_output("acme", "generated", execution_id)
        assert "aGVsbG8K" in events, events
        assert executions.get_execution("acme", "generated", execution_id).exit_code == 3
        run = client.RunCommandRequest(command="sh", args=["-c", "cat; echo oops >&2; exit 4"], stdin="hello")
        result = executions.run_command("acme", "generated", run)
        assert (result.status, result.exit_code, result.stdout, result.stderr) == ("completed", 4, "hello", "oops\n")
        assert not result.stdout_truncated
        try:
            boxes.create_box("acme", request)
            raise AssertionError("the name was given twice")
        except client.ApiException as exc:
            assert (exc.status, exc.data.error.code.actual_instance) == (409, "already_exists"), exc
        assert client.WorkersApi(api).get_worker_by_box(box.box_id).running_boxes == 1
        stopped = boxes.stop_box("acme", "generated", stop_box_request=client.StopBoxRequest(timeout_seconds=5))
        assert stopped.status == client.BoxStatus.STOPPED
    finally:
        boxes.remove_box("acme", box.box_id, force=True)
    assert boxes.list_boxes("acme").boxes == []
