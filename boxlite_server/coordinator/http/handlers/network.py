"""Network policies and tunnels of a running box: all are refused, and each refusal names the alternative."""

from __future__ import annotations

from typing import Any, NoReturn

from .... import errors
from ...core import Core


async def update_inbound_policy(core: Core, prefix: str, box_id: str, body: dict[str, Any]) -> NoReturn:
    await core.boxes.get(prefix, box_id)
    raise errors.UnsupportedError(
        "what may enter a box cannot be changed on this server; give 'ports' when the box is created"
    )


async def update_outbound_policy(core: Core, prefix: str, box_id: str, body: dict[str, Any]) -> NoReturn:
    await core.boxes.get(prefix, box_id)
    raise errors.UnsupportedError(
        "the network of a box cannot be changed on this server; give 'network' when the box is created"
    )


async def open_tunnel(core: Core, prefix: str, box_id: str, port: int) -> NoReturn:
    await core.boxes.get(prefix, box_id)
    raise errors.UnsupportedError(
        f"this server opens no tunnels; give 'ports' with guest_port {port} when the box is created"
    )


async def close_tunnel(core: Core, prefix: str, box_id: str, port: int) -> NoReturn:
    await core.boxes.get(prefix, box_id)
    raise errors.UnsupportedError("this server opens no tunnels; there is none to close")
