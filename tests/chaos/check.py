"""What is there, held against itself and against the model."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from .api import Api, box_path
from .history import Record
from .model import Flaw, Model, mark_of
from .traffic import FILES, LOG, read
from .world import NO_ANSWER, World, survey

QUIET_SECONDS = 180.0  # until all is as it should be; a stray container is left alone for the first minute
TELL_SECONDS = 30.0
HOLDING = ("configured", "running", "paused")  # a box that is "stopping" may be a stopped box that is being removed
STATES = {"configured": {"created", "exited", "waiting"}, "stopped": {"created", "exited"}, "running": {"running"}}

# What an engine says of a container whose start was cut off when it was killed; see Engine.cure.
REMAINS = ("id already in use", ": already exists")

Survey = dict[str, Any]


def structure(found: Survey) -> list[Flaw]:
    """Rows against engines: each box has one container, in its state; nothing else is there."""
    flaws = [Flaw("state", f"worker {w['name']} is {w['status']}") for w in found["workers"] if w["status"] != "active"]
    boxes = {box["box_id"]: box for box in found["boxes"]}
    containers: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for host, inventory in found["engines"].items():
        for container in inventory["containers"]:
            containers[container["labels"].get("boxlite.box", "")].append((host, container))
        for kind in ("images", "volumes"):
            for thing in inventory[kind]:
                if thing["labels"].get("boxlite.box") not in boxes:
                    flaws.append(Flaw("orphan", f"{kind[:-1]} on {host} is no box's: {thing}"))
    for box_id, there in containers.items():
        if box_id not in boxes:
            flaws += [
                Flaw("orphan", f"container {container['name']} on {host} is no box's") for host, container in there
            ]
        elif len(there) > 1:
            flaws.append(Flaw("doubled", f"box {box_id} has {len(there)} containers: {there}"))
    for box_id, box in boxes.items():
        if box["status"] not in STATES:
            flaws.append(Flaw("state", f"box {box_id} is {box['status']}: {box.get('error_message')}"))
        elif box_id not in containers:
            flaws.append(Flaw("lost", f"box {box_id} ({box['status']}) has no container"))
        else:
            host, container = containers[box_id][0]
            if not states_of(container) & STATES[box["status"]]:
                text = f"box {box_id} is {box['status']}, and its container is {container['state']}"
                flaws.append(Flaw("state", text))
            elif host != box["worker"]:
                flaws.append(Flaw("state", f"box {box_id} of {box['worker']} is on {host}"))
    names = Counter(box["name"] for box in found["boxes"] if box["name"])
    flaws += [Flaw("doubled", f"{count} boxes are named {name}") for name, count in names.items() if count > 1]
    return flaws


def states_of(container: dict[str, Any]) -> set[str]:
    """What a container may be in. The engine does not say whether a supervisor still waits for the main command."""
    waits = container["state"] == "running" and container.get("command", "").endswith("--wait")
    return {container["state"], "waiting"} if waits else {container["state"]}


def oversold(records: Iterable[Record]) -> list[Flaw]:
    """Lists that show more boxes on a worker than it takes, and workers that reserved more than they have."""
    flaws: list[Flaw] = []
    limits: dict[str, tuple[int, int]] = {}
    for record in records:
        if record.op == "workers" and record.acknowledged:
            for worker in record.result["workers"]:
                capacity, reserved = worker["capacity"], worker["reserved"]
                limits[worker["name"]] = (capacity["max_boxes"], capacity["memory_mib"])
                if reserved["boxes"] > capacity["max_boxes"] or reserved["memory_mib"] > capacity["memory_mib"]:
                    flaws.append(Flaw("oversold", f"{worker['name']} promises {reserved} of {capacity}", [record]))
        if record.op == "list" and record.acknowledged:
            boxes: Counter[str] = Counter()
            memory: Counter[str] = Counter()
            for _, status, worker, memory_mib in record.result["boxes"]:
                if status in HOLDING:
                    boxes[worker] += 1
                    memory[worker] += memory_mib
            for worker, (max_boxes, memory_mib) in limits.items():
                if boxes[worker] > max_boxes or memory[worker] > memory_mib:
                    text = f"{worker} has {boxes[worker]} boxes with {memory[worker]} MiB, and takes {max_boxes}"
                    flaws.append(Flaw("oversold", text, [record]))
    return flaws


def answers(records: Iterable[Record]) -> list[Flaw]:
    """Answers that no request should get."""
    return [
        Flaw("answer", f"{record.op}: {record.flaw}: {record.error}", [record]) for record in records if record.flaw
    ]


def await_quiet(world: World, api: Api, model: Model) -> tuple[Survey, list[Flaw], float]:
    """Look until nothing is wrong any more: what there is, what remains wrong, and after how many seconds."""
    return _await(world, api, lambda found: structure(found) + model.compare(found["boxes"]))


def _await(world: World, api: Api, judge: Callable[[Survey], list[Flaw]]) -> tuple[Survey, list[Flaw], float]:
    start = time.monotonic()
    tell_at = start + TELL_SECONDS
    found: Survey = {"boxes": [], "workers": [], "engines": {}}
    flaws: list[Flaw] = []
    while time.monotonic() - start < QUIET_SECONDS:
        try:
            found = survey(world, api.ask)
            flaws = judge(found)
        except NO_ANSWER as exc:
            flaws = [Flaw("state", f"somebody does not answer: {exc}")]
        if not flaws:
            break
        _operate(world, api, found)
        if time.monotonic() > tell_at:
            print(f"not yet: {len(flaws)} flaws, one of them: {flaws[0].text}", flush=True)
            tell_at += TELL_SECONDS
        time.sleep(1.0)
    return found, flaws, time.monotonic() - start


def _operate(world: World, api: Api, found: Survey) -> None:
    """What a cluster leaves to its operator: an engine that does not get over its own death, and the boxes that
    failed because of it."""
    for host in world.hosts:
        host.engine.cure()
    for box in found["boxes"]:
        if box["status"] == "failed" and any(text in (box["error_message"] or "") for text in REMAINS):
            api.call("start", {"box": box["box_id"]}, "POST", box_path(box["box_id"], "/start"))


def read_all(api: Api, found: Survey, model: Model) -> list[Flaw]:
    """Read every file and log of every box, for the model to judge; what cannot be read."""
    flaws = []
    for box in found["boxes"]:
        if box["box_id"] in model.boxes:
            for path in (LOG, *FILES):
                record = read(api, box["box_id"], path)
                if not record.acknowledged and record.status != 404:
                    text = f"{path} of box {box['box_id']} cannot be read: {record.status} {record.error}"
                    flaws.append(Flaw("state", text, [record]))
    return flaws


def remove_all(world: World, api: Api, found: Survey) -> list[Flaw]:
    """Remove every box; nothing of any may be left."""
    flaws = []
    for box in found["boxes"]:
        record = api.call("remove", {"box": box["box_id"]}, "DELETE", box_path(box["box_id"], "?force=true"))
        if not record.acknowledged:
            text = f"box {box['box_id']} ({mark_of(box)}) cannot be removed: {record.status} {record.error}"
            flaws.append(Flaw("state", text, [record]))

    def left(found: Survey) -> list[Flaw]:
        rows = [Flaw("state", f"box {box['box_id']} was removed and is listed") for box in found["boxes"]]
        return rows + structure(found)

    return flaws + _await(world, api, left)[1]


def logs(world: World) -> list[Flaw]:
    """Faults that a coordinator or a worker has logged."""
    flaws = []
    for process in [*world.coordinators, *(host.worker for host in world.hosts)]:
        lines = process.log.read_text(errors="replace").splitlines()
        for number, line in enumerate(lines):
            if line.startswith("Traceback"):
                flaws.append(Flaw("fault", f"{process.name}: {lines[number - 1]} ({process.log}:{number + 1})"))
    return flaws
