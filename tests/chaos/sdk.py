"""A client that uses the released SDK, as most users do. It sends no Idempotency-Key; all its boxes have names."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

from .api import BOUND
from .history import ACKNOWLEDGED, REFUSED, UNKNOWN, UNREACHED, History, Record
from .traffic import BOXES, FILES, LOG, MEMORY_MIB
from .world import IMAGE, KEY

try:
    import boxlite
except ImportError:
    boxlite = None  # type: ignore[assignment]

STATUS = {
    "AlreadyExistsError": 409,
    "InvalidStateError": 409,
    "StoppedError": 409,
    "NotFoundError": 404,
    "ResourceExhaustedError": 429,
    "InvalidArgumentError": 400,
    "UpstreamUnavailableError": 503,
    "EngineError": 503,
    "DatabaseError": 503,
}


class SdkClient:
    """Random calls, until told to stop; then it finishes the one under way."""

    def __init__(self, name: str, url: str, history: History, rng: Random, stopping: threading.Event) -> None:
        self.name = name
        self.fault: BaseException | None = None  # of this program
        self._url = url
        self._history = history
        self._rng = rng
        self._stopping = stopping
        self._boxes: dict[str, Any] = {}  # the SDK's handles, by box id
        self._count = 0

    def run(self) -> None:
        try:
            asyncio.run(self._work())
        except BaseException as exc:
            self.fault = exc
            raise

    async def _work(self) -> None:
        options = boxlite.BoxliteRestOptions(url=self._url, credential=boxlite.ApiKeyCredential(KEY))
        runtime = boxlite.Boxlite.rest(options)
        while not self._stopping.is_set():
            await asyncio.sleep(self._rng.uniform(0.1, 0.8))
            if not self._boxes or (len(self._boxes) < BOXES and self._rng.random() < 0.3):
                await self._create(runtime)
                continue
            box = self._boxes[self._rng.choice(list(self._boxes))]
            acts = {self._execute: 30, self._copy_in: 12, self._copy_out: 8, self._start: 8, self._stop: 8}
            (act,) = self._rng.choices([*acts, self._get, self._list, self._remove], [*acts.values(), 8, 5, 5])
            await act(runtime, box)

    def _new(self, word: str) -> str:
        self._count += 1
        return f"sdk-{word}-{self.name}-{self._count}"

    async def _call(self, op: str, args: dict[str, Any], call: Callable[[], Awaitable[dict[str, Any]]]) -> Record:
        record = self._history.begin(self.name, op, args)
        try:
            record.result = await asyncio.wait_for(call(), BOUND)
            record.outcome = ACKNOWLEDGED
        except TimeoutError:
            record.error = f"no answer within {BOUND:.0f} s"
            if op != "output":  # seconds, longer than the SDK itself retries
                record.flaw = "hung"
        except Exception as exc:  # all of them are the SDK's
            kind = type(exc).__name__
            record.error, record.status = f"{kind}: {exc}", STATUS.get(kind)
            unreached = "connect failed" in record.error
            record.outcome = REFUSED if kind in STATUS else UNREACHED if unreached else UNKNOWN
            if record.status == 404 and "box" in args:
                self._boxes.pop(args["box"], None)  # whether it may be gone is for the check to say
        return self._history.end(record)

    async def _create(self, runtime: Any) -> None:
        mark = self._new("box")
        options = boxlite.BoxOptions(image=IMAGE, cpus=1, memory_mib=MEMORY_MIB, auto_remove=False)
        found: list[Any] = []

        async def create() -> dict[str, Any]:
            found.append(await runtime.create(options, name=mark))
            return {"box_id": found[-1].id}

        async def find() -> dict[str, Any]:
            box = await runtime.get(mark)
            found.extend([box] if box is not None else [])
            return {"ids": [box.id for box in found]}

        args = {"mark": mark, "name": mark}
        if not (await self._call("create", args, create)).acknowledged:
            await self._call("find", {"mark": mark}, find)
        for box in found:
            self._boxes[box.id] = box

    async def _remove(self, runtime: Any, box: Any) -> None:
        async def remove() -> dict[str, Any]:
            await runtime.remove(box.id, force=True)
            return {}

        if (await self._call("remove", {"box": box.id}, remove)).acknowledged:
            self._boxes.pop(box.id)

    async def _start(self, runtime: Any, box: Any) -> None:
        await self._call("start", {"box": box.id}, lambda: _nothing(box.start()))

    async def _stop(self, runtime: Any, box: Any) -> None:
        await self._call("stop", {"box": box.id}, lambda: _nothing(box.stop()))

    async def _get(self, runtime: Any, box: Any) -> None:
        async def get() -> dict[str, Any]:
            if await runtime.get_info(box.id) is None:
                raise boxlite.NotFoundError("box not found")
            return {}

        await self._call("get", {"box": box.id}, get)

    async def _list(self, runtime: Any, box: Any) -> None:
        await self._call("list of the SDK", {}, lambda: _nothing(runtime.list_info()))

    async def _execute(self, runtime: Any, box: Any) -> None:
        nonce = self._new("x")
        args = {"box": box.id, "nonce": nonce}
        begun: list[Any] = []

        async def execute() -> dict[str, Any]:
            begun.append(await box.exec("sh", ["-c", f"echo {nonce} >> {LOG}; echo {nonce}"]))
            return {}

        async def output() -> dict[str, Any]:
            text = "".join([part async for part in begun[0].stdout()])
            ended = await begun[0].wait()
            if not text:  # after a lost connection the SDK gives the exit code without the output, and no error
                raise RuntimeError("no output came")
            return {"stdout": text, "exit_code": ended.exit_code}

        if (await self._call("exec", args, execute)).acknowledged:
            await self._call("output", args, output)

    async def _copy_in(self, runtime: Any, box: Any) -> None:
        path, content = self._rng.choice(FILES), self._new("content")
        with tempfile.TemporaryDirectory() as directory:
            source = _file(directory, content)
            args = {"box": box.id, "path": path, "content": content}
            await self._call("put", args, lambda: _nothing(box.copy_in(source, path)))

    async def _copy_out(self, runtime: Any, box: Any) -> None:
        with tempfile.TemporaryDirectory() as directory:
            target = str(Path(directory, "file"))

            async def copy_out() -> dict[str, Any]:
                await box.copy_out(LOG, target)
                return {"content": _text(target)}

            await self._call("read", {"box": box.id, "path": LOG}, copy_out)


async def _nothing(awaitable: Awaitable[Any]) -> dict[str, Any]:
    await awaitable
    return {}


def _file(directory: str, content: str) -> str:
    path = Path(directory, "file")
    path.write_text(content)
    return str(path)


def _text(path: str) -> str:
    return Path(path).read_text()
