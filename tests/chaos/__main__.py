"""`python -m chaos`: traffic and faults for a while, then the question whether anything was lost.

The exit code is 0 when all is well, 1 when anything is not, 2 where it cannot be run.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

from boxlite_server import signals
from boxlite_server.errors import BoxliteError
from boxlite_server.local import busybox

from . import check, faults, isolation, postgres, sdk
from .api import Api
from .history import ACKNOWLEDGED, REFUSED, UNKNOWN, UNREACHED, History
from .model import Flaw, Model
from .traffic import MEMORY_MIB, Client, sample
from .world import IMAGE, NO_ANSWER, World, wait_until

KINDS = ("lost", "doubled", "orphan", "oversold", "ghost", "state", "content", "answer", "exit", "fault")
INTERRUPTED = 130
WARM_BOXES = 6
MAX_BOXES = 14  # at each worker: too few for all, at times
SHOWN = 6  # records shown with a flaw; all of them are in a file


def main() -> int:
    options = _options()
    if options.inside:
        code = _inside(options)
        sys.stdout.flush()
        os._exit(code)  # the SDK's own threads may still hold objects when the interpreter is taken down
    try:
        reason = isolation.obstacle() or (postgres.obstacle() if options.store == "postgresql" else None)
    except BoxliteError as exc:
        reason = exc.message
    if reason:
        print(f"chaos cannot be run here: {reason}", file=sys.stderr)
        return 2
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**9)
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))  # short, for the sockets in it
    directory.chmod(0o711)
    (directory / "image.tar").write_bytes(busybox.archive())
    command = [sys.executable, "-m", "chaos", "--inside", str(directory), "--seed", str(seed)]
    command += [f"--{name}={getattr(options, name)}" for name in ("seconds", "store", "workers", "clients")]
    code = INTERRUPTED
    try:
        code = isolation.run(command, directory.name)
    finally:
        if code in (0, INTERRUPTED) and not options.keep:
            shutil.rmtree(directory)
        else:
            for data in set(directory.iterdir()) - {directory / "logs"}:
                if data.is_dir():
                    shutil.rmtree(data)
            print(f"seed {seed}; what happened is in {directory}: history.jsonl, faults.jsonl, flaws.txt, logs/")
    return code


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos", description="A cluster under traffic and faults.")
    parser.add_argument("--seconds", type=float, default=900, help="of traffic and faults (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the plan of faults (default: a random one, printed)")
    parser.add_argument("--store", choices=("sqlite", "postgresql"), default="sqlite", help="what the rows are in")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--keep", action="store_true", help="keep history and logs also when all is well")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _inside(options: argparse.Namespace) -> int:
    signals.keep_from_children()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    isolation.settle_in()
    world = World(options.inside, options.inside.name)
    try:
        return _run(options, world)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        return INTERRUPTED
    finally:
        world.close()


def _run(options: argparse.Namespace, world: World) -> int:
    directory: Path = options.inside
    print(f"seed {options.seed}, {options.seconds:.0f} s on {options.store}; logs in {world.logs}", flush=True)
    history = History(directory / "history.jsonl")
    _build(options, world)
    api = Api(world.url, history, "checker")
    wait_until(lambda: _all_active(api, options.workers), "all workers are registered")
    _keep_warm(api, WARM_BOXES)

    stopping = threading.Event()
    clients = _clients(options, world, history, stopping)
    watcher = Api(world.url, history, "watcher")
    threads = [threading.Thread(target=client.run, name=client.name, daemon=True) for client in clients]
    threads.append(threading.Thread(target=sample, name="watcher", args=(watcher, stopping), daemon=True))
    print(f"{len(clients)} clients and {options.workers} workers at work", flush=True)
    for thread in threads:
        thread.start()
    planned = faults.plan(
        random.Random(options.seed),
        options.seconds,
        hosts=options.workers,
        coordinators=len(world.coordinators),
        database=world.database is not None,
    )
    done = faults.Faults(world, directory / "faults.jsonl", history.now)
    done.run(planned, options.seconds)
    world.heal()
    stopping.set()
    wait_until(lambda: _keep_warm(api, 0), "the pools are emptied")
    warm = api.ask("/v1/admin/warm")
    print("; ".join(f"{name} {warm[name]}" for name in warm if name.endswith("_total")), flush=True)
    for thread in threads:
        thread.join(timeout=300)
    flaws = [Flaw("fault", f"client {client.name} failed: {client.fault!r}") for client in clients if client.fault]
    flaws += [Flaw("fault", f"client {thread.name} does not end") for thread in threads if thread.is_alive()]
    flaws += [Flaw("exit", text) for text in done.flaws]
    return _tell(directory, history, done, flaws + _verdict(world, history, api))


def _clients(
    options: argparse.Namespace, world: World, history: History, stopping: threading.Event
) -> list[Client | sdk.SdkClient]:
    def rng(name: str) -> random.Random:
        return random.Random(f"{options.seed} {name}")

    names = [f"c{number}" for number in range(1, options.clients + 1)]
    plain = [Client(name, world.url, history, rng(name), stopping) for name in names]
    if sdk.boxlite is None:
        print("the released SDK is not installed: plain HTTP alone")
        return [*plain]
    return [*plain, sdk.SdkClient("s1", world.url, history, rng("s1"), stopping)]


def _verdict(world: World, history: History, api: Api) -> list[Flaw]:
    """All that is wrong once everything is healed, and after every box has been read and removed."""
    print("healed; waiting for quiet", flush=True)
    found, flaws, seconds = check.await_quiet(world, api, Model(history.records))
    print(f"quiet after {seconds:.0f} s, with {len(found['boxes'])} boxes", flush=True)
    flaws += check.read_all(api, found, Model(history.records))
    flaws += Model(history.records).flaws
    flaws += check.remove_all(world, api, found)
    return flaws + check.oversold(history.records) + check.answers(history.records) + check.logs(world)


def _build(options: argparse.Namespace, world: World) -> None:
    image = (world.directory / "image.tar").read_bytes()
    if options.store == "postgresql":
        database = postgres.start(world)
        for _ in range(2):
            world.add_coordinator("--database", database)
        world.url = postgres.balance([process.machine.address for process in world.coordinators])
    else:
        world.add_coordinator("--db-path", str(world.directory / "coordinator.db"))
    for _ in range(options.workers):
        world.add_host(image, max_boxes=MAX_BOXES)


def _keep_warm(api: Api, boxes: int) -> bool:
    """Have the fleet keep so many warm boxes of the kind that clients ask for."""
    pools = [{"image": IMAGE, "memory_mib": MEMORY_MIB, "boxes": boxes}] if boxes else []
    return api.call("keep warm", {"boxes": boxes}, "PUT", "/v1/admin/warm", {"pools": pools}).acknowledged


def _all_active(api: Api, count: int) -> bool:
    try:
        workers = api.ask("/v1/admin/workers")["workers"]
    except NO_ANSWER:
        return False
    return len([worker for worker in workers if worker["status"] == "active"]) == count


def _tell(directory: Path, history: History, done: faults.Faults, flaws: list[Flaw]) -> int:
    outcomes = Counter(record.outcome for record in history.records)
    operations = Counter(record.op for record in history.records)
    flaws = list({(flaw.kind, flaw.text): flaw for flaw in reversed(flaws)}.values())[::-1]  # each once
    found = Counter(flaw.kind for flaw in flaws)
    print(f"faults        {done.counts.total()}: {_counts(done.counts)}")
    print(f"operations    {operations.total()}: {_counts(operations)}")
    for outcome in (ACKNOWLEDGED, REFUSED, UNREACHED, UNKNOWN):
        print(f"{outcome:<13} {outcomes[outcome]}")
    for kind in KINDS:
        print(f"{kind:<13} {found[kind]}")
    with (directory / "flaws.txt").open("w") as output:
        for flaw in flaws:
            output.write(f"{flaw.kind}: {flaw.text}\n")
            output.writelines(f"    {record.line()}\n" for record in flaw.records)
    for flaw in flaws[:40]:
        print(f"\n{flaw.kind}: {flaw.text}")
        for record in flaw.records[-SHOWN:]:
            print(f"    {record.line()[:260]}")
    return 1 if flaws else 0


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main())
