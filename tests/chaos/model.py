"""What must be there at the end, and what may be, by the history.

An acknowledged request is done. A refused one is not, unless a fault of the server's own refused it; that one
and one without an answer is done perhaps. So for everything the model keeps all that it may be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from .history import Record
from .traffic import LOG

IDLE, RUNNING = "idle", "running"  # for a box that does not run, it does not matter whether it ever ran


@dataclass
class Disk:
    """What is in a box. `files` has by path all that a file may hold, None for no file; `lines` has by nonce
    whether its line must be in the log of commands. With `blurred` anything may be there."""

    files: dict[str, set[str | None]] = field(default_factory=dict)
    lines: dict[str, bool] = field(default_factory=dict)
    blurred: bool = False

    def fits(self, path: str, content: str | None) -> bool:
        return self.blurred or content in self.files.get(path, {None})


@dataclass
class Box:
    """All that a box may be."""

    id: str
    there: set[bool] = field(default_factory=lambda: {True})
    status: set[str] = field(default_factory=lambda: {IDLE})
    disk: Disk = field(default_factory=Disk)
    snapshots: dict[str, Disk] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    acknowledged_at: float = 0.0
    removed_at: float = float("inf")  # the first attempt began


@dataclass
class Flaw:
    """Something that must not be: its kind, what it is, and the records that tell of it."""

    kind: str
    text: str
    records: list[Record] = field(default_factory=list)


class Model:
    """What the history says of each box."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.boxes: dict[str, Box] = {}
        self.marks: dict[str, list[Record]] = defaultdict(list)  # the attempts at one box, by its mark
        self.flaws: list[Flaw] = []
        self._lists: list[Record] = []
        for record in sorted(records, key=lambda record: record.begin):
            self._take(record)
        for record in self._lists:  # whether a removal was under way by then is known only now
            self._listed(record)

    def _flaw(self, kind: str, text: str, *records: Record) -> None:
        self.flaws.append(Flaw(kind, text, list(records)))

    def _take(self, record: Record) -> None:
        if record.op in ("create", "clone", "find"):
            self._made(record)
        if record.op == "list" and record.acknowledged and record.result["whole"]:
            self._lists.append(record)
        box = self.boxes.get(record.args.get("box", ""))
        if box is None:
            return
        box.records.append(record)
        if record.acknowledged and record.op in ("start", "stop", "exec", "put") and box.removed_at == float("inf"):
            box.there, box.acknowledged_at = {True}, min(box.acknowledged_at, record.end)
        if record.op == "remove":
            box.removed_at = min(box.removed_at, record.begin)
        if record.status == 404 and record.op != "read":
            self._missing(box, record)
        elif record.acknowledged or record.perhaps:
            change = getattr(self, f"_{record.op}", None)
            if change is not None:
                change(box, record, record.acknowledged)

    # ---- boxes ----

    def _made(self, record: Record) -> None:
        attempts = self.marks[record.args["mark"]]
        attempts.append(record)
        if not record.acknowledged:
            return
        ids = record.result.get("ids", [record.result.get("box_id")])
        known = {other.result["box_id"] for other in attempts[:-1] if "box_id" in other.result}
        if len(known.union(ids)) > 1:
            self._flaw("doubled", f"{record.args['mark']} was made as {sorted(known.union(ids))}", *attempts)
        for box_id in ids:
            if box_id not in self.boxes:
                source = self.boxes.get(record.args.get("box", ""))
                disk = deepcopy(source.disk) if source else Disk()
                box = self.boxes[box_id] = Box(box_id, disk=disk, records=[record], acknowledged_at=record.end)
                if any(attempt.args.get("start") for attempt in attempts):
                    box.status = {RUNNING, IDLE} if record.op == "find" else {RUNNING}
                if record.op == "find":  # and never acknowledged: its making may have been broken off, and be undone
                    box.there, box.acknowledged_at = {True, False}, float("inf")

    def _missing(self, box: Box, record: Record) -> None:
        if record.op == "restore" and "snapshot" in record.error:
            if box.snapshots.get(record.args["name"]):
                self._flaw("lost", f"snapshot {record.args['name']} of box {box.id} is gone", *box.records)
        elif False not in box.there:
            self._flaw("lost", f"box {box.id} was not found", *box.records)
            box.there = {True, False}
        else:
            box.there = {False}

    def _listed(self, record: Record) -> None:
        shown = {row[0] for row in record.result["boxes"]}
        for box in self.boxes.values():
            if box.acknowledged_at < record.begin and record.end < box.removed_at and box.id not in shown:
                self._flaw("lost", f"box {box.id} was missing in a list", *box.records, record)

    def _remove(self, box: Box, record: Record, done: bool) -> None:
        box.there = {False} if done else box.there | {False}

    def _start(self, box: Box, record: Record, done: bool) -> None:
        box.status = {RUNNING} if done else box.status | {RUNNING}

    def _stop(self, box: Box, record: Record, done: bool) -> None:
        box.status = {IDLE} if done else box.status | {IDLE}

    # ---- what is in them ----

    def _exec(self, box: Box, record: Record, done: bool) -> None:
        self._start(box, record, done)
        box.disk.lines.setdefault(record.args["nonce"], False)

    def _output(self, box: Box, record: Record, done: bool) -> None:
        if not done or record.result["exit_code"] != 0:
            return
        nonce = record.args["nonce"]
        box.disk.lines[nonce] = True
        if record.result["stdout"] != f"{nonce}\n" and not record.result.get("lost"):
            self._flaw("content", f"box {box.id} printed {record.result['stdout']!r} for {nonce}", record)

    def _put(self, box: Box, record: Record, done: bool) -> None:
        new, files = record.args["content"], box.disk.files
        path = record.args["path"]
        files[path] = {new} if done else files.get(path, {None}) | {new}

    def _read(self, box: Box, record: Record, done: bool) -> None:
        if not done and record.status != 404:
            return
        path, content = record.args["path"], record.result.get("content")
        if record.status == 404 and "box not found" in record.error:
            self._missing(box, record)
        elif path == LOG:
            self._read_log(box, record, content or "")
        elif not box.disk.fits(path, content):
            may = sorted(map(str, box.disk.files.get(path, {None})))
            self._flaw("lost", f"{path} of box {box.id} holds {content!r}, not {' or '.join(may)}", *box.records)

    def _read_log(self, box: Box, record: Record, text: str) -> None:
        lines, disk = text.split(), box.disk
        twice = {line for line in lines if lines.count(line) > 1}
        if twice:
            self._flaw("doubled", f"box {box.id} executed {sorted(twice)} more than once", *box.records)
        missing = [nonce for nonce, must in disk.lines.items() if must and nonce not in lines]
        if missing and not disk.blurred:
            self._flaw("lost", f"box {box.id} has no trace of executions {missing}", *box.records)
        foreign = [line for line in lines if line not in disk.lines]
        if foreign and not disk.blurred:
            self._flaw("content", f"box {box.id} has executed {foreign}, which it should not", *box.records)

    def _snapshot(self, box: Box, record: Record, done: bool) -> None:
        if done:
            box.snapshots[record.args["name"]] = deepcopy(box.disk)

    def _restore(self, box: Box, record: Record, done: bool) -> None:
        if not done:
            box.disk.blurred = True  # the box may come about later
            return
        box.disk = deepcopy(box.snapshots[record.args["name"]])
        box.status = {IDLE}

    # ---- at the end ----

    def compare(self, listed: list[dict[str, Any]]) -> list[Flaw]:
        """Flaws of the list of all boxes: what it must not show, and what it lacks."""
        flaws = []
        shown = {box["box_id"]: box for box in listed}
        for box in self.boxes.values():
            now = shown.get(box.id)
            if now is None and False not in box.there:
                flaws.append(Flaw("lost", f"box {box.id} is not listed", box.records))
            if now is not None and True not in box.there:
                flaws.append(Flaw("lost", f"box {box.id} was removed and is listed ({now['status']})", box.records))
            if now is not None:
                is_now = RUNNING if now["status"] == "running" else IDLE
                if is_now not in box.status:
                    should = " or ".join(sorted(box.status))
                    text = f"box {box.id} is {now['status']} and should be {should}"
                    flaws.append(Flaw("state", text, box.records))
        by_mark: dict[str, list[str]] = defaultdict(list)
        for row in listed:
            by_mark[mark_of(row)].append(row["box_id"])
        for mark, attempts in self.marks.items():
            ids = by_mark.pop(mark, [])
            tries = [record for record in attempts if record.op != "find"]
            if len(ids) > 1:
                flaws.append(Flaw("doubled", f"{mark} is there as {ids}", attempts))
            if ids and all(record.outcome == "refused" and record.status not in (500, 504) for record in tries):
                flaws.append(Flaw("ghost", f"{mark} was refused and is there as {ids}", attempts))
        flaws += [Flaw("ghost", f"nobody asked for {mark}, {ids}") for mark, ids in by_mark.items()]
        return flaws


def mark_of(box: dict[str, Any]) -> str:
    """The mark that identifies a box: a clone has its source's labels and a name of its own."""
    name = box.get("name") or ""
    if name.startswith(("clone-", "sdk-")):
        return str(name)
    return str(box["labels"].get("mark") or name or box["box_id"])
