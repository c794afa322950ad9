"""What many commands leave behind at the server: nothing that grows."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import boxes
from support.attach import attached
from support.child import BOUND
from support.cluster import Cluster
from support.held import Held, held_by, holder_of

COMMANDS = 200


@pytest.fixture(scope="module")
def busy(new_shared_cluster: Callable[..., Cluster], test_image: str) -> Iterator[tuple[Cluster, str]]:
    """A cluster that was started under the usual soft limit of descriptors, and a running box in it."""
    with pytest.MonkeyPatch.context() as patch:  # the process of the tests may have more of them open already
        patch.setattr("support.cluster.BOUND", (*BOUND, "prlimit", "--nofile=1024:"))
        cluster = new_shared_cluster()
        cluster.start_coordinator()
        cluster.start_worker()
    box = boxes.create(cluster)
    boxes.start(cluster, box)
    yield cluster, box
    cluster.http("DELETE", f"/v1/boxes/{box}?force=true")


def run(cluster: Cluster, box: str, number: int) -> str:
    """Run a command to its end, and check its output."""
    execution = boxes.execute(cluster, box, f"echo {number}; exit {number % 3}")
    with attached(cluster, f"{box}/executions/{execution}/attach") as client:
        assert client.to_the_end() == number % 3
    assert client.stdout == b"%d\n" % number
    return execution


def held(cluster: Cluster) -> list[Held]:
    assert cluster.coordinator is not None
    worker = cluster.workers[0]
    return [held_by(pid) for pid in (worker.pid, holder_of(worker.home), cluster.coordinator.pid)]


def test_two_hundred_commands_leave_nothing_open(busy: tuple[Cluster, str]) -> None:
    cluster, box = busy
    with ThreadPoolExecutor(4) as pool:  # at once, so that all the threads of the servers are there
        first = next(iter(list(pool.map(lambda number: run(cluster, box, number), range(20)))))
    before = held(cluster)
    for number in range(COMMANDS):
        run(cluster, box, number)
    for former, now in zip(before, held(cluster), strict=True):
        assert now.descriptors <= former.descriptors + 10, (before, held(cluster))
        assert now.threads <= former.threads + 5, (before, held(cluster))
        assert now.memory <= former.memory + 16 * 1024, (before, held(cluster))
    assert boxes.state(cluster, box, first)["exit_code"] == 0  # finished commands are remembered all the same


def test_the_servers_raise_the_limit_of_descriptors(busy: tuple[Cluster, str]) -> None:
    cluster, _ = busy
    assert cluster.coordinator is not None
    for pid in (cluster.workers[0].pid, cluster.coordinator.pid):
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        assert soft == hard
