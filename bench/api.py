"""What a client waits for: `python bench/api.py [ROUNDS]`.

A coordinator and a worker on a private engine of their own, loopback, one client. Times in milliseconds,
median and 95th percentile; the output rate in MiB/s. They compare runs on one machine, not machines.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from websockets.sync.client import connect

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.cluster import Cluster  # noqa: E402

from boxlite_server.local import busybox, dockerd  # noqa: E402

IMAGE = "boxlite-bench:latest"
OUTPUT_MIB = 64


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        with dockerd.private_engine(directory / "e") as docker_host:
            busybox.import_image(docker_host, IMAGE)
            cluster = Cluster(directory / "c", docker_host)
            cluster.start_coordinator()
            cluster.start_worker()
            try:
                yield cluster
            finally:
                cluster.close()


def measure(name: str, rounds: int, action: Callable[[], object]) -> None:
    action()
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        action()
        times.append((time.perf_counter() - begun) * 1000)
    p95 = statistics.quantiles(times, n=20)[-1]
    print(f"{name:<34}{statistics.median(times):>10.2f}{p95:>10.2f}", flush=True)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with running_cluster() as cluster:

        def call(method: str, path: str, body: object = None) -> dict[str, str]:
            status, _, answer = cluster.http(method, path, body)
            assert status < 300, answer
            return answer

        def execute(command: str, *args: str) -> int:
            execution = call("POST", f"/v1/boxes/{box}/exec", {"command": command, "args": list(args)})
            url = f"ws://127.0.0.1:{cluster.port}/v1/boxes/{box}/executions/{execution['execution_id']}/attach"
            with connect(url, compression=None, max_size=None) as socket:
                return sum(len(frame) - 1 for frame in socket if isinstance(frame, bytes))

        def whole_life() -> None:
            name = call("POST", "/v1/boxes", {"image": IMAGE, "memory_mib": 128})["box_id"]
            call("POST", f"/v1/boxes/{name}/start")
            call("DELETE", f"/v1/boxes/{name}?force=true")

        box = call("POST", "/v1/boxes", {"image": IMAGE, "memory_mib": 128})["box_id"]
        call("POST", f"/v1/boxes/{box}/start")
        print(f"{'':<34}{'median':>10}{'p95':>10}")
        measure("GET /v1/health", rounds * 10, lambda: call("GET", "/v1/health"))
        measure("GET a box", rounds * 10, lambda: call("GET", f"/v1/boxes/{box}"))
        measure("GET the list of boxes", rounds * 10, lambda: call("GET", "/v1/boxes"))
        measure("a command, attached to its end", rounds, lambda: execute("true"))
        measure("create, start and remove a box", rounds, whole_life)
        begun = time.perf_counter()
        received = execute("head", "-c", str(OUTPUT_MIB << 20), "/dev/zero")
        assert received == OUTPUT_MIB << 20
        print(f"{'output of one command, MiB/s':<34}{OUTPUT_MIB / (time.perf_counter() - begun):>10.1f}")
        call("DELETE", f"/v1/boxes/{box}?force=true")


if __name__ == "__main__":
    main()
