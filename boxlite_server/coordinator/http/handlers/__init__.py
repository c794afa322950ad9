"""From an operation of openapi.yaml to the function that serves it.

The tag names the module and the operationId the function: ``createBox`` under ``Boxes`` is
``handlers/boxes.py: create_box``. An operation without a function is not built yet, and says so.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn

from connexion.resolver import Resolution, Resolver

from ....errors import NotBuiltError

if TYPE_CHECKING:
    from ...core import Core

Handler = Callable[..., Awaitable[Any]]


class TagResolver(Resolver):  # type: ignore[misc]
    """Resolves operations to handlers that are bound to one coordinator's `core`."""

    def __init__(self, core: Core) -> None:
        super().__init__()
        self._core = core

    def resolve(self, operation: Any) -> Resolution:
        spec = operation._operation  # Connexion keeps the tags to itself
        handler = find(spec["tags"][0], spec["operationId"])
        if handler is None:
            return Resolution(functools.partial(_not_built, spec["operationId"]), spec["operationId"])
        return Resolution(functools.partial(handler, self._core), spec["operationId"])


def find(tag: str, operation_id: str) -> Handler | None:
    """The function that serves an operation; None when it is not built yet."""
    try:
        module = importlib.import_module(f"{__name__}.{tag.lower()}")
    except ModuleNotFoundError:
        return None
    return getattr(module, re.sub(r"(?<!^)(?=[A-Z])", "_", operation_id).lower(), None)


async def _not_built(
    operation_id: str,
    *,
    prefix: str = "",
    box_id: str = "",
    execution_id: str = "",
    snapshot_name: str = "",
    image_id: str = "",
    volume_id: str = "",
    alias: str = "",
) -> NoReturn:
    """Takes whatever the path holds, by name: with `**kwargs` Connexion would read the whole body first."""
    raise NotBuiltError(f"{operation_id} is not built yet in this server")
