"""How commands end: what ends with them, what they leave running, and what their users are told."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from support import boxes
from support.attach import attached, run
from support.cluster import Cluster, wait_until


@pytest.fixture(scope="module")
def cluster(new_shared_cluster: Callable[..., Cluster], test_image: str) -> Cluster:
    """A cluster whose worker may be restarted."""
    cluster = new_shared_cluster()
    cluster.start_coordinator()
    cluster.start_worker()
    return cluster


@pytest.fixture(scope="module")
def box(cluster: Cluster) -> Iterator[str]:
    """A running box that the tests share."""
    box = boxes.create(cluster, memory_mib=256)
    boxes.start(cluster, box)
    yield box
    cluster.http("DELETE", f"/v1/boxes/{box}?force=true")


_seconds = itertools.count(700_000)


def marker() -> str:
    """Seconds that no other command sleeps: they name a process."""
    return str(next(_seconds))


def finished(cluster: Cluster, box: str, execution: str) -> dict[str, object]:
    """The state of the execution, once it has ended."""
    with attached(cluster, f"{box}/executions/{execution}/attach") as client:
        client.to_the_end()
    return boxes.state(cluster, box, execution)


def sleeping(cluster: Cluster, box: str, seconds: str) -> int:
    """How many processes of the box sleep that long."""
    return int(run(cluster, box, f"ps -o args | grep -c '^[s]leep {seconds}' || true"))


FAMILIES = {
    "a child": "sleep {0} & sleep {0}",
    "a session of its own": "setsid sleep {0} & sleep {0}",
    "a group of its own": "set -m; sleep {0} & sleep {0}",
    "without output": "setsid sleep {0} >/dev/null 2>&1 </dev/null & sleep {0}",
    "a daemon": "(setsid sh -c 'sleep {0} & sleep {0}' >/dev/null 2>&1 </dev/null &); sleep {0}",
    "without environment": "env -i setsid sleep {0} & sleep {0}",
    "deaf to signals": "trap '' TERM HUP INT; nohup sleep {0} & sleep {0}",
}


@pytest.mark.parametrize("tty", [False, True])
def test_a_time_limit_ends_all_that_a_command_has_started(cluster: Cluster, box: str, tty: bool) -> None:
    seconds = {how: marker() for how in FAMILIES}
    executions = {
        how: boxes.execute(cluster, box, script.format(seconds[how]), timeout_seconds=1, tty=tty)
        for how, script in FAMILIES.items()
    }
    states = {how: finished(cluster, box, execution) for how, execution in executions.items()}
    assert {how: (state["status"], state["exit_code"]) for how, state in states.items()} == dict.fromkeys(
        FAMILIES, ("timed_out", 137)
    )
    assert {how: sleeping(cluster, box, seconds[how]) for how in FAMILIES} == dict.fromkeys(FAMILIES, 0)


def test_a_kill_ends_a_tree_that_grows(cluster: Cluster, box: str) -> None:
    seconds = marker()
    grow = f"while sleep 0.01; do setsid sleep {seconds} & done"
    execution = boxes.execute(cluster, box, f"{grow} & {grow} & {grow}")
    wait_until(lambda: sleeping(cluster, box, seconds) > 20, "the tree grows")
    assert cluster.http("DELETE", f"/v1/boxes/{box}/executions/{execution}")[0] == 204
    assert finished(cluster, box, execution)["status"] == "killed"
    assert sleeping(cluster, box, seconds) == 0


def test_a_kill_leaves_other_commands_alone(cluster: Cluster, box: str) -> None:
    mine, other = marker(), marker()
    left = boxes.execute(cluster, box, f"setsid sleep {other} & echo up")
    finished(cluster, box, left)
    running = boxes.execute(cluster, box, f"sleep {other}")
    killed = boxes.execute(cluster, box, f"sleep {mine} & sleep {mine}")
    cluster.http("DELETE", f"/v1/boxes/{box}/executions/{killed}")
    finished(cluster, box, killed)
    assert sleeping(cluster, box, other) == 2
    assert boxes.state(cluster, box, running)["status"] == "running"


SERVERS = {
    "in the background": "{0} & echo up",
    "in a session": "setsid {0} & echo up",
    "a daemon": "(setsid {0} &); echo up",
    "after a while": "{0} & sleep 0.3; echo up",
    "talkative": "(while :; do echo a line; done) & {0} & echo up",
}


def test_servers_live_on_with_their_output_when_their_commands_end(cluster: Cluster, box: str) -> None:
    directory = f"/tmp/{marker()}"
    run(cluster, box, f"mkdir {directory}")
    executions = {}
    for number, (how, script) in enumerate(SERVERS.items()):
        server = f"sh -c 'while echo beat; echo beat >&2; do echo x >> {directory}/{number}; sleep 0.1; done'"
        executions[how] = boxes.execute(cluster, box, script.format(server))
    for how, execution in executions.items():
        with attached(cluster, f"{box}/executions/{execution}/attach") as client:
            assert client.to_the_end() == 0
        assert b"up\n" in client.stdout, how

    def beats() -> list[int]:
        return [int(count) for count in run(cluster, box, f"cd {directory}; for f in *; do wc -l < $f; done").split()]

    so_far = beats()
    assert len(so_far) == len(SERVERS)
    cluster.workers[0].restart()
    # The engine closes the output 4 s after the command's end, which is 40 beats.
    wait_until(lambda: all(now > then + 50 for then, now in zip(so_far, beats(), strict=True)), "all servers go on")


@pytest.mark.parametrize("tty", [False, True])
def test_the_end_of_a_command_does_not_wait_for_what_it_leaves(cluster: Cluster, tty: bool) -> None:
    box = boxes.create(cluster)  # the engine is late with ends in a box in which a command has just left something
    boxes.start(cluster, box)
    execution = boxes.execute(cluster, box, "trap '' HUP; sleep 1000 & sleep 0.5; echo up", tty=tty)
    state = finished(cluster, box, execution)
    assert state["exit_code"] == 0
    assert int(str(state["duration_ms"])) < 2_400, "the engine ends the output 2 s after the command"
    cluster.http("DELETE", f"/v1/boxes/{box}?force=true")


def test_all_that_a_command_says_comes_before_its_end_though_it_leaves_a_talker(cluster: Cluster, box: str) -> None:
    script = "(while sleep 0.01; do echo noise; done) & seq 1 300000; echo last >&2"
    execution = boxes.execute(cluster, box, script)
    with attached(cluster, f"{box}/executions/{execution}/attach") as client:
        assert client.to_the_end() == 0
    said = [line for line in client.stdout.split(b"\n") if line.isdigit()]
    assert (said[0], said[-1], client.stderr) == (b"1", b"300000", b"last\n")
    assert len(said) > 299_000  # noise may stand in the middle of a line
