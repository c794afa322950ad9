"""What happens to the machines: a plan made from the seed, and its execution."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from .world import Engine, Host, Machine, Process, World

END_SECONDS = 60.0  # for a process to end on SIGTERM
CALM = 3.0  # seconds without faults, first and last


@dataclass(frozen=True)
class Kind:
    """A kind of fault: on what, how often against the others, and for how long (least and most seconds)."""

    on: str
    act: str
    weight: int
    seconds: tuple[float, float]

    @property
    def name(self) -> str:
        return f"{self.on} {self.act}"


KINDS = [
    Kind("worker", "killed", 6, (0, 8)),
    Kind("worker", "terminated", 3, (0, 4)),
    Kind("worker", "frozen", 4, (2, 25)),
    Kind("coordinator", "killed", 4, (0, 5)),
    Kind("coordinator", "terminated", 2, (0, 3)),
    Kind("coordinator", "frozen", 2, (1, 10)),
    Kind("engine", "killed", 4, (0, 8)),
    Kind("engine", "terminated", 2, (0, 5)),
    Kind("engine", "frozen", 2, (2, 12)),
    Kind("host", "without power", 3, (1, 10)),
    Kind("link", "cut", 4, (3, 30)),
    Kind("link", "silent", 4, (3, 30)),
    Kind("link", "mute", 3, (3, 20)),
    Kind("two links", "silent", 2, (3, 20)),
]
WITH_DATABASE = [
    Kind("coordinator", "killed", 10, (0, 5)),
    Kind("database", "killed", 1, (0, 3)),
    Kind("database link", "silent", 2, (1, 10)),
    Kind("database link", "cut", 2, (1, 10)),
    Kind("coordinator's way to the database", "mute", 4, (1, 15)),
]


@dataclass(frozen=True)
class Fault:
    """One fault to come; `at` is in seconds since the start."""

    at: float
    until: float
    kind: Kind
    targets: tuple[str, ...]


def plan(rng: Random, seconds: float, *, hosts: int, coordinators: int, database: bool) -> list[Fault]:
    """Faults until `seconds`, each with its end: mostly one at a time, now and then two at once. Nothing has the
    same fault twice at a time, but a worker may well be killed behind a cut cable."""
    kinds = [*KINDS, *(WITH_DATABASE if database else [])]
    faults: list[Fault] = []
    busy: dict[tuple[str, str], float] = {}
    at = CALM
    while at < seconds - CALM:
        begun = []
        for _ in range(rng.choices([1, 2], [7, 3])[0]):
            (kind,) = rng.choices(kinds, [kind.weight for kind in kinds])
            targets = _targets(rng, kind, hosts, coordinators)
            until = min(at + rng.uniform(*kind.seconds), seconds)
            parts = [(part, target) for target in targets for part in _parts(kind)]
            if any(busy.get(part, 0.0) >= at for part in parts):
                continue
            busy |= dict.fromkeys(parts, until + 0.5)
            begun.append(Fault(at, until, kind, targets))
        faults += begun
        longest = max((fault.until - at for fault in begun), default=0.0)
        at += rng.uniform(0.3, 0.9) * longest + rng.uniform(0.5, 4.0)
    return faults


def _targets(rng: Random, kind: Kind, hosts: int, coordinators: int) -> tuple[str, ...]:
    if kind.on == "two links":
        return tuple(f"worker-{number}" for number in sorted(rng.sample(range(1, hosts + 1), min(2, hosts))))
    if kind.on.startswith("coordinator"):
        return (f"coordinator-{rng.randint(1, coordinators)}",)
    if kind.on.startswith("database"):
        return ("database",)
    return (f"worker-{rng.randint(1, hosts)}",)


def _parts(kind: Kind) -> tuple[str, ...]:
    if kind.on == "host":
        return "worker", "engine"
    return ("link",) if kind.act in ("cut", "silent", "mute") else (kind.on,)


@dataclass
class Faults:
    """Carries out a plan; what it did also stands in a file, with the seconds of `now`."""

    world: World
    path: Path
    now: Callable[[], float]
    counts: Counter[str] = field(default_factory=Counter)
    flaws: list[str] = field(default_factory=list)  # processes that did not end as they should

    def run(self, faults: Iterable[Fault], seconds: float) -> None:
        """Begin and end each fault in its time; processes that end by themselves are started again and reported."""
        steps = [(fault.at, True, fault) for fault in faults] + [(fault.until, False, fault) for fault in faults]
        start = self.now()
        for at, begins, fault in sorted(steps, key=lambda step: step[0]):
            self._supervise(start + at)
            (self._begin if begins else self._end)(fault)
            self._tell("begins" if begins else "ends", fault)
        self._supervise(start + seconds)

    def _begin(self, fault: Fault) -> None:
        self.counts[fault.kind.name] += 1
        act = fault.kind.act
        for machine in self._machines(fault):
            if act == "cut":
                machine.cut()
            elif act == "silent":
                machine.silence()
            elif act == "mute":
                machine.mute(*([self.world.database.machine.address] if "way" in fault.kind.on else []))
        for process in self._processes(fault):
            if act == "frozen":
                process.signal(signal.SIGSTOP)
            elif act == "terminated":
                process.signal(signal.SIGTERM)
            else:
                process.kill()
        if act == "without power":
            self._host(fault.targets[0]).engine.lose_power()

    def _end(self, fault: Fault) -> None:
        for machine in self._machines(fault):
            machine.mend()
        for process in self._processes(fault):
            if fault.kind.act == "frozen":
                process.signal(signal.SIGCONT)
                continue
            if fault.kind.act == "terminated":
                self._await_end(process)
            process.start()

    def _await_end(self, process: Process) -> None:
        try:
            code = process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.flaws.append(f"{process.name} did not end within {END_SECONDS:.0f} s of SIGTERM (log: {process.log})")
            process.kill()
            return
        # Until it says that it serves, the signal may come before there is a handler for it.
        is_too_early = code == -signal.SIGTERM and not process.said
        if code != 0 and not is_too_early and not isinstance(process, Engine):
            self.flaws.append(f"{process.name} ended on SIGTERM with exit code {code} (log: {process.log})")

    def _supervise(self, until: float) -> None:
        """Wait, and start again what ended by itself, as an init system does."""
        while True:
            for process in self.world.processes:
                if process.expected and not process.running:
                    if not self._cannot_start(process):
                        self.flaws.append(f"{process.name} ended by itself, exit code {process.exit_code}")
                    process.start()
            left = until - self.now()
            if left <= 0:
                return
            time.sleep(min(left, 1.0))

    def _cannot_start(self, process: Process) -> bool:
        """Whether the process exits with an error for now: a coordinator without its database, a dockerd that finds
        what another one left."""
        without_database = self.world.database is not None and process in self.world.coordinators
        return isinstance(process, Engine) or (without_database and process.exit_code == 1)

    def _machines(self, fault: Fault) -> list[Machine]:
        """The machines whose connection the fault is about."""
        if fault.kind.act not in ("cut", "silent", "mute"):
            return []
        return [machine for machine in self.world.machines if machine.name in fault.targets]

    def _processes(self, fault: Fault) -> list[Process]:
        if fault.kind.act in ("cut", "silent", "mute"):
            return []
        if fault.kind.on == "coordinator":
            return [process for process in self.world.coordinators if process.name in fault.targets]
        if fault.kind.on == "database":
            return [self.world.database] if self.world.database else []
        host = self._host(fault.targets[0])
        return {"worker": [host.worker], "engine": [host.engine], "host": [host.worker, host.engine]}[fault.kind.on]

    def _host(self, name: str) -> Host:
        return next(host for host in self.world.hosts if host.machine.name == name)

    def _tell(self, what: str, fault: Fault) -> None:
        line = {"at": self.now(), "fault": f"{fault.kind.name} {what}", "targets": fault.targets}
        with self.path.open("a") as output:
            output.write(json.dumps(line) + "\n")
