"""Exports a box as a `.boxlite` archive, and imports an archive as a new box, on any worker.

The archive holds what the client asked for (`spec`) and what the box's commands ran with (`settings`, which include
the image's part, since the image itself stays behind). Neither can be trusted when it comes back.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from ... import errors, rpc, specs
from ..._gen import worker_pb2 as pb
from ...formats import timestamp
from .. import schemas
from ..fleet.calls import Calls
from ..limits import Policy
from ..spec import Spec
from ..store import Box
from . import archive_format
from .creating import Creation
from .turns import Turns, ref

_SETTINGS = ("env", "working_dir", "entrypoint", "cmd", "user")


class Archives:
    """Exports and imports; `clock` gives Unix seconds. Bytes are handed on, never gathered."""

    def __init__(
        self, turns: Turns, creation: Creation, calls: Calls, policy: Policy, clock: Callable[[], float]
    ) -> None:
        self._turns = turns
        self._creation = creation
        self._calls = calls
        self._policy = policy
        self._clock = clock

    async def export(self, prefix: str, id_or_name: str) -> tuple[Box, AsyncGenerator[bytes, None]]:
        """The box and an archive of its present state. A running box is paused until the worker holds its disk;
        after that it may run and change while the archive is sent."""
        async with self._turns.locked(prefix, id_or_name) as (box, worker):
            chunks = self._calls.export_box(worker, ref(box))
            try:
                first = await anext(chunks)
            except errors.NotFoundError as exc:
                raise errors.InvalidStateError(f"box '{id_or_name}' has no container any more, and so no disk") from exc
        manifest = {
            "created_at": timestamp(self._clock()),
            "image": box.spec.image,
            "spec": box.spec.to_request(),
            "settings": _settings(first.settings),
        }

        async def tar() -> AsyncIterator[bytes]:
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk.data

        return box, archive_format.write(manifest, tar())

    async def load(
        self, prefix: str, name: str | None, stream: AsyncIterator[bytes], *, request_key: str | None = None
    ) -> Box:
        """Make a box of an archive, on the least loaded worker that has room; it is not started. With a
        `request_key`, see `Creation.made_before`.

        Raises InvalidArgumentError for a malformed or incomplete archive, and UnsupportedError for settings that this
        server does not support; nothing is left of the box then.
        """
        reader = archive_format.Reader(stream)
        manifest = await reader.manifest()
        spec = dataclasses.replace(self._checked(manifest.get("spec"), "spec"), name=name)
        settings = self._checked(manifest.get("settings"), "settings")
        stop_signal = _stop_signal(manifest["settings"])
        if left := await self._creation.made_before(request_key, spec):
            return left
        async with self._creation.being_made(prefix, spec, request_key=request_key) as (box, worker):
            whole = dataclasses.replace(spec, **{key: getattr(settings, key) for key in _SETTINGS}).to_proto(box.box_id)
            # What no request can ask for comes from the image that stayed behind.
            whole.image_entrypoint = not spec.entrypoint
            whole.stop_signal = stop_signal
            first = pb.ImportBoxRequest(box=pb.CreateBoxRequest(box=box, spec=whole))
            await self._calls.import_box(worker.id, first, _requests(reader))
        return await self._turns.get(prefix, box.box_id)

    def _checked(self, request: Any, where: str) -> Spec:
        """The spec that `request` stands for, checked like a client's request to `createBox`."""
        if not isinstance(request, Mapping):
            raise errors.InvalidArgumentError(f"the archive's {where} is missing")
        schemas.check(request, _create_request(), f"the archive's {where}")
        return Spec.of_request(request, self._policy)


async def _requests(reader: archive_format.Reader) -> AsyncIterator[pb.ImportBoxRequest]:
    async for piece in reader.pieces():
        for chunk in rpc.chunks(piece):
            yield pb.ImportBoxRequest(data=chunk)
    yield pb.ImportBoxRequest(end=True)


def _settings(message: pb.BoxSettings) -> dict[str, Any]:
    return {
        "env": dict(message.env),
        "working_dir": message.working_dir or None,
        "entrypoint": list(message.entrypoint),
        "cmd": list(message.cmd),
        "user": message.user or None,
        "stop_signal": message.stop_signal or None,
    }


def _stop_signal(settings: Mapping[str, Any]) -> str:
    """The checked stop signal; empty: that of the engine."""
    value = settings.get("stop_signal")
    if value is not None and not (isinstance(value, str) and re.fullmatch(r"[A-Z0-9+-]{1,16}", value)):
        raise errors.InvalidArgumentError("the archive's settings: stop_signal is not the name of a signal")
    return value or ""


@functools.cache
def _create_request() -> dict[str, Any]:
    return {"$ref": "#/components/schemas/CreateBoxRequest", "components": specs.openapi()["components"]}
