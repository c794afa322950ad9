"""What attacks from within a box cost the commands of another one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ..case import Bench, Case
from ..harness import Comparison, Result, timed
from ..sides import RefusedError

COMMANDS = 100  # in each round, before and during an attack
ROUNDS = 5
LEAD = 1.0  # seconds that an attack has before it counts
# Each goes on until it is killed, and takes no more of the machine than a box may have; the disk gets 256 MiB again and
# again.
ATTACKS = {
    "fork bomb": "while :; do (b() { b | b & }; b; sleep 1); done",
    "processes that come and go": "while :; do true & true & true & true & wait; done",
    "memory bomb": "while :; do tail /dev/zero; done",
    "disk fill": "while :; do dd if=/dev/zero of=/fill bs=1M count=256; sync; done",
    "busy loops": "for n in $(seq 100); do while :; do :; done & done; wait",
}


def attackers(bench: Bench) -> Iterator[Result]:
    server = bench.server
    victim = server.create()
    server.start(victim)
    try:
        for name, script in ATTACKS.items():
            before, during = list[float](), list[float]()
            for _ in range(bench.rounds(ROUNDS)):
                before += _commands(bench, victim)
                with _attack(bench, script):
                    during += _commands(bench, victim)
            title = f"`run` of `true` during a {name} in another box, against the time before"
            yield Comparison(f"attackers, {name}", title, during, before, COMMANDS)
    finally:
        server.remove(victim)


def _commands(bench: Bench, box: str) -> list[float]:
    def ours() -> None:
        answer = bench.server.request("POST", f"/v1/boxes/{box}/run", {"command": "true"})
        assert json.loads(answer)["exit_code"] == 0

    return [timed(ours) for _ in range(COMMANDS)]


@contextmanager
def _attack(bench: Bench, script: str) -> Iterator[None]:
    """A box in which the script runs, for the duration of the block."""
    box = bench.server.create()
    bench.server.start(box)
    body = {"command": "sh", "args": ["-c", f"({script}) > /dev/null 2>&1"]}
    attack = _in_thread(lambda: bench.server.request("POST", f"/v1/boxes/{box}/run", body))
    time.sleep(LEAD)
    try:
        yield
    finally:
        bench.server.remove(box)
        attack.join()


def _in_thread(act: Callable[[], object]) -> threading.Thread:
    def run() -> None:
        with suppress(RefusedError):  # the box is removed under the command
            act()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


CASES = [Case("attackers", attackers, on_demand=True)]
