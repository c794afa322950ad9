"""What files cost: `python bench/files.py [MIB] [STREAMS]`, by default 1024 MiB and 100 streams.

One large file up and down, then many of 10 MiB at once, each in both directions. Shows rates in MiB/s and how
much memory coordinator and worker took beyond what they held before; fails where a file comes back changed.
The cluster is one coordinator and one worker on a private engine of their own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from api import IMAGE, running_cluster
from support import memory, transfer
from support.cluster import Cluster

MIB = 1 << 20
EACH = 10  # MiB of each of many


def shown(name: str, cluster: Cluster, mib: int, action: Callable[[], None]) -> None:
    assert cluster.coordinator is not None
    with memory.growth(cluster.coordinator.pid) as coordinator, memory.growth(cluster.workers[0].pid) as worker:
        begun = time.perf_counter()
        action()
        took = time.perf_counter() - begun
    print(
        f"{name:<34}{took:>8.1f} s{mib / took:>9.1f} MiB/s"
        f"    coordinator +{coordinator.peak / MIB:.1f} MiB, worker +{worker.peak / MIB:.1f} MiB",
        flush=True,
    )


def main() -> None:
    mib = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    streams = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    with running_cluster() as cluster:

        def new_box() -> str:
            status, _, box = cluster.http("POST", "/v1/boxes", {"image": IMAGE, "memory_mib": 128})
            assert status == 201, box
            return str(box["box_id"])

        def large_up() -> None:
            sent.append(transfer.upload(cluster.port, box, "/root/large", mib))

        def large_down() -> None:
            assert transfer.download(cluster.port, box, "/root/large") == sent[0], "it came back changed"

        def both_ways(number: int) -> bool:
            one = boxes[number % len(boxes)]
            path = f"/root/{number}"
            return transfer.upload(cluster.port, one, path, EACH, seed=number) == transfer.download(
                cluster.port, one, path
            )

        def many() -> None:
            with ThreadPoolExecutor(streams) as pool:
                results = list(pool.map(both_ways, range(streams)))
            assert results == [True] * streams, f"{results.count(False)} came back changed"

        sent: list[str] = []
        box = new_box()
        transfer.download(cluster.port, box, "/bin/busybox")  # what is loaded at first use is no growth
        transfer.upload(cluster.port, box, "/root/warm", 1)
        shown(f"{mib} MiB up", cluster, mib, large_up)
        shown(f"{mib} MiB down, equal", cluster, mib, large_down)
        boxes = [box, *(new_box() for _ in range(3))]
        shown(f"{streams} x {EACH} MiB up and down, equal", cluster, 2 * EACH * streams, many)
        for one in boxes:
            cluster.http("DELETE", f"/v1/boxes/{one}?force=true")


if __name__ == "__main__":
    main()
