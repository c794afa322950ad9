"""`python -m bench`: measure this server against the docker SDK on the same private engine, in turn.

Loopback, one coordinator, one worker, a warm image. A table in Markdown goes to the output, row by row. Cases are
named; `--only` takes one or more of them, also those that are measured on demand.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from support.cluster import Cluster

from boxlite_server.local import busybox, dockerd

from . import report
from .case import Bench
from .cases import CASES
from .harness import Result
from .sides import IMAGE, Sdk, Server

ROOT = Path(__file__).parents[1]


def main() -> None:
    options = _options()
    cases = [case for case in CASES if (case.name in options.only if options.only else not case.on_demand)]
    results: list[Result] = []
    with _sides() as (server, sdk):
        about = report.machine(sdk.client.version()["Version"])
        print(f"{report.heading(about)}\n\n{report.table([])}", flush=True)
        for case in cases:
            for result in case.run(Bench(server, sdk, 0.2 if options.quick else 1.0)):
                print(report.line(result), flush=True)
                results.append(result)
    if options.json:
        options.json.write_text(json.dumps(report.as_json(about, results), indent=1) + "\n")
    if options.docs:
        report.write_docs(ROOT / "README.md", ROOT / "docs/performance.md", about, results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = [case.name for case in CASES]
    parser.add_argument("--only", nargs="+", choices=names, default=[], metavar="NAME", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="a fifth of the rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all times to FILE")
    parser.add_argument("--docs", action="store_true", help="write the ratios into README.md and docs/performance.md")
    options = parser.parse_args()
    if options.docs and (options.only or options.quick):
        parser.error("the pages get the figures of a whole run")
    return options


@contextlib.contextmanager
def _sides() -> Iterator[tuple[Server, Sdk]]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        with dockerd.private_engine(directory / "e") as docker_host:
            busybox.import_image(docker_host, IMAGE)
            cluster = Cluster(directory / "c", docker_host)
            cluster.start_coordinator()
            cluster.start_worker("--cpu-overcommit", "1000")  # 100 boxes have a cpu each
            try:
                yield Server(cluster), Sdk(docker_host)
            except BaseException:
                print(cluster.tails(), file=sys.stderr)
                raise
            finally:
                cluster.close()


if __name__ == "__main__":
    main()
