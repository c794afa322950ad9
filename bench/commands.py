"""Whether commands stay as fast, and leave as little behind, as the first one: `python bench/commands.py [COMMANDS]`.

A coordinator and a worker on a private engine of their own; one box runs short commands, each of which is attached to
its end. For every tenth of the commands: the median time in milliseconds, and what the processes hold behind it.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

from api import IMAGE, running_cluster
from websockets.sync.client import connect

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import boxes
from support.cluster import Cluster
from support.held import held_by, holder_of


def execute(cluster: Cluster, box: str, number: int) -> None:
    """Run a command, read its output to the end, and check it."""
    execution = boxes.execute(cluster, box, f"echo {number}")
    url = f"ws://127.0.0.1:{cluster.port}/v1/boxes/{box}/executions/{execution}/attach"
    with connect(url, compression=None) as socket:
        said = b"".join(frame[1:] for frame in socket if isinstance(frame, bytes))
    assert said == b"%d\n" % number, said


def main() -> None:
    commands = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with running_cluster() as cluster:
        box = boxes.create(cluster, image=IMAGE)
        boxes.start(cluster, box)
        execute(cluster, box, 0)
        worker, coordinator = cluster.workers[0], cluster.coordinator
        assert coordinator is not None
        pids = {"worker": worker.pid, "holder": holder_of(worker.home), "coordinator": coordinator.pid}
        print(f"{'':<12}{'median':>8}  " + "".join(f"{name:>30}" for name in pids))
        size = max(commands // 10, 1)
        for begin in range(0, commands, size):
            times = []
            for number in range(begin, begin + size):
                begun = time.perf_counter()
                execute(cluster, box, number)
                times.append((time.perf_counter() - begun) * 1000)
            held = "".join(f"{held_by(pid)!s:>30}" for pid in pids.values())
            print(f"{begin + size:<12}{statistics.median(times):>8.1f}  {held}", flush=True)


if __name__ == "__main__":
    main()
