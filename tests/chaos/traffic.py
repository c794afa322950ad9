"""The clients. Each leads boxes of its own, one request after the other, so that what it was told about a box
comes in an order; all of them list, and some ask for the same name at the same time."""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
from dataclasses import dataclass, field
from random import Random
from typing import Any

from .api import Api, box_path, content_of, tar_of
from .history import REFUSED, History, Record
from .world import IMAGE

BOXES = 4  # that a client keeps, more or less
MEMORY_MIB = 128
ATTEMPTS = 5  # of a request that carries an Idempotency-Key
LOG = "/root/log"  # each command appends its nonce to this file
FILES = ("/root/a", "/root/b", "/tmp/c")


@dataclass
class Held:
    """A box as its client knows it."""

    id: str
    mark: str  # which its environment has
    snapshots: list[str] = field(default_factory=list)
    files: set[str] = field(default_factory=set)


class Client:
    """Random requests, until told to stop; then it finishes the one under way."""

    def __init__(self, name: str, url: str, history: History, rng: Random, stopping: threading.Event) -> None:
        self.name = name
        self.fault: BaseException | None = None  # of this program
        self._api = Api(url, history, name)
        self._rng = rng
        self._stopping = stopping
        self._boxes: list[Held] = []
        self._count = 0

    def run(self) -> None:
        try:
            while not self._stopping.wait(self._rng.uniform(0.1, 0.8)):
                self._step()
        except BaseException as exc:
            self.fault = exc
            raise

    def _step(self) -> None:
        if not self._boxes or (len(self._boxes) < BOXES and self._rng.random() < 0.3):
            self._create()
            return
        box = self._rng.choice(self._boxes)
        acts = {
            self._execute: 30,
            self._put: 15,
            self._read: 10,
            self._get: 8,
            self._start: 8,
            self._stop: 8,
            self._snapshot: 6,
            self._restore: 7,
            self._remove: 6,
            self._clone: 2,
            self._list: 5,
        }
        (act,) = self._rng.choices(list(acts), list(acts.values()))
        act(box)

    def _new(self, word: str) -> str:
        self._count += 1
        return f"{word}-{self.name}-{self._count}"

    def _is_done(self, record: Record, box: Held) -> bool:
        if record.outcome == REFUSED and record.status == 404 and record.op != "read" and box in self._boxes:
            self._boxes.remove(box)  # whether it may be gone is for the check to say
        return record.acknowledged

    # ---- boxes ----

    def _create(self) -> None:
        mark = self._new("box")
        keyed = self._rng.random() < 0.6
        name = mark if self._rng.random() < 0.5 else None
        if self._rng.random() < 0.1:
            # The same name for all clients in the same few seconds: one of them at most may get it.
            name = f"wanted-{int(time.monotonic()) // 5}"
        start = self._rng.random() < 0.4
        body: dict[str, Any] = {"image": IMAGE, "cpus": 1, "memory_mib": MEMORY_MIB, "labels": {"mark": mark}}
        body |= {"env": {"MARK": mark}, "start": start}
        if self._rng.random() < 0.3:
            body["cmd"] = ["tail", "-f", "/dev/null"]
        if name:
            body["name"] = name
        args = {"mark": mark, "name": name, "keyed": keyed, "start": start}
        for _ in range(ATTEMPTS if keyed else 1):
            record = self._api.call(
                "create", args, "POST", "/v1/boxes", body, key=mark if keyed else None, learn=_box_id
            )
            if record.acknowledged:
                self._boxes.append(Held(record.result["box_id"], mark))
                return
            if not record.perhaps and record.outcome == REFUSED:
                return
            if self._stopping.wait(self._rng.uniform(0.3, 3.0)):
                break
        found = self._api.call("find", {"mark": mark}, "GET", f"/v1/boxes?label=mark%3D{mark}", learn=_ids)
        if found.acknowledged and found.result["ids"]:
            self._boxes.append(Held(found.result["ids"][0], mark))

    def _clone(self, box: Held) -> None:
        if len(self._boxes) > BOXES:
            return
        mark = self._new("clone")
        args = {"box": box.id, "mark": mark}
        record = self._api.call(
            "clone", args, "POST", box_path(box.id, "/clone"), {"name": mark}, key=mark, learn=_box_id
        )
        if self._is_done(record, box):
            self._boxes.append(Held(record.result["box_id"], box.mark, files=set(box.files)))

    def _remove(self, box: Held) -> None:
        for _ in range(ATTEMPTS):
            record = self._api.call("remove", {"box": box.id}, "DELETE", box_path(box.id, "?force=true"))
            if self._is_done(record, box):
                self._boxes.remove(box)
            if box not in self._boxes or self._stopping.wait(self._rng.uniform(0.3, 3.0)):
                return

    def _start(self, box: Held) -> None:
        self._is_done(self._api.call("start", {"box": box.id}, "POST", box_path(box.id, "/start")), box)

    def _stop(self, box: Held) -> None:
        body = {"timeout_seconds": 2}
        self._is_done(self._api.call("stop", {"box": box.id}, "POST", box_path(box.id, "/stop"), body), box)

    def _get(self, box: Held) -> None:
        record = self._api.call("get", {"box": box.id}, "GET", box_path(box.id), learn=lambda found: _shown(found))
        self._is_done(record, box)

    def _list(self, box: Held) -> None:
        self._api.call("list", {}, "GET", "/v1/boxes", learn=_listed)

    # ---- what is in them ----

    def _execute(self, box: Held) -> None:
        nonce = self._new("x")
        args = {"box": box.id, "nonce": nonce}
        script = f'[ "$MARK" = {box.mark} ] || echo "the box is that of $MARK"; echo {nonce} >> {LOG}; echo {nonce}'
        body = {"command": "sh", "args": ["-c", script]}
        keyed = self._rng.random() < 0.5
        path = box_path(box.id, "/exec")
        for _ in range(ATTEMPTS if keyed else 1):
            begun = self._api.call("exec", args, "POST", path, body, key=nonce if keyed else None, learn=dict)
            if self._is_done(begun, box):
                execution = begun.result["execution_id"]
                output = box_path(box.id, f"/executions/{execution}/output")
                self._api.call("output", {**args, "execution": execution}, "GET", output, stream=_output)
                return
            if not begun.perhaps or self._stopping.wait(self._rng.uniform(0.3, 3.0)):
                return

    def _put(self, box: Held) -> None:
        path, content = self._rng.choice(FILES), self._new("content")
        args = {"box": box.id, "path": path, "content": content}
        target = box_path(box.id, f"/files?path={path}")
        if self._is_done(self._api.call("put", args, "PUT", target, tar_of("file", content)), box):
            box.files.add(path)

    def _read(self, box: Held) -> None:
        if box.files:
            read(self._api, box.id, self._rng.choice(sorted(box.files)))

    def _snapshot(self, box: Held) -> None:
        if len(box.snapshots) < 2:
            name = self._new("snapshot")
            args = {"box": box.id, "name": name}
            record = self._api.call("snapshot", args, "POST", box_path(box.id, "/snapshots"), {"name": name})
            if self._is_done(record, box):
                box.snapshots.append(name)

    def _restore(self, box: Held) -> None:
        if box.snapshots:
            name = self._rng.choice(box.snapshots)
            self._stop(box)
            path = box_path(box.id, f"/snapshots/{name}/restore")
            self._is_done(self._api.call("restore", {"box": box.id, "name": name}, "POST", path), box)


def read(api: Api, box_id: str, path: str) -> Record:
    """What a file of a box holds; 404 when there is none."""
    args = {"box": box_id, "path": path}
    return api.call("read", args, "GET", box_path(box_id, f"/files?path={path}"), learn=content_of)


def sample(api: Api, stopping: threading.Event) -> None:
    """Record what is reserved, until told to stop."""
    while not stopping.wait(2.0):
        api.call("list", {}, "GET", "/v1/boxes", learn=_listed)
        api.call("workers", {}, "GET", "/v1/admin/workers", learn=dict)


def _box_id(box: dict[str, Any]) -> dict[str, Any]:
    return {"box_id": box["box_id"]}


def _shown(box: dict[str, Any]) -> dict[str, Any]:
    return {"box_id": box["box_id"], "status": box["status"]}


def _ids(answer: dict[str, Any]) -> dict[str, Any]:
    return {"ids": [box["box_id"] for box in answer["boxes"]]}


def _listed(answer: dict[str, Any]) -> dict[str, Any]:
    rows = [[box["box_id"], box["status"], box["worker"], box["memory_mib"]] for box in answer["boxes"]]
    return {"boxes": rows, "whole": not answer.get("next_page_token")}


def _output(response: http.client.HTTPResponse, deadline: float) -> dict[str, Any]:
    """Standard output and exit code from a stream of server-sent events. EOFError when it breaks off."""
    event, text, lost = "", "", False
    for raw in response:
        if time.monotonic() > deadline:
            raise TimeoutError
        word, _, rest = raw.decode().rstrip("\n").partition(": ")
        if word == "event":
            event = rest
        elif word == "data" and event == "stdout":
            text += base64.b64decode(json.loads(rest)["data"]).decode()
        elif word == "data" and event == "exit":
            return {"exit_code": json.loads(rest)["exit_code"], "stdout": text, "said": rest, "lost": lost}
        elif word == "data" and event == "lost":
            lost = True
        elif word == "data" and event == "error":
            raise EOFError(rest)
    raise EOFError("the stream ended without an exit")
