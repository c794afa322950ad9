"""Asks workers what a box uses."""

from __future__ import annotations

from typing import Any, NamedTuple

from ... import errors
from ..._gen import worker_pb2 as pb
from ..fleet.calls import Calls
from .turns import Turns, ref


class BootTiming(NamedTuple):
    """How long the parts of a box's last start took, in milliseconds; None where the worker did not measure it."""

    total_ms: int | None
    image_prepare_ms: int | None
    box_config_ms: int | None
    box_spawn_ms: int | None
    container_init_ms: int | None


class BoxMetrics(NamedTuple):
    """Counts since the worker's process started; None where the worker cannot measure it."""

    commands_executed: int
    exec_errors: int
    input_bytes: int
    output_bytes: int
    cpu_percent: float | None  # of one cpu
    memory_bytes: int | None
    network_bytes_sent: int | None
    network_bytes_received: int | None
    memory_limit_kills: int | None
    commands_by_engine: int | None
    boot: BootTiming


class Metrics:
    """Measurements of boxes; nothing is kept here."""

    def __init__(self, turns: Turns, calls: Calls) -> None:
        self._turns = turns
        self._calls = calls

    async def of_box(self, prefix: str, id_or_name: str) -> BoxMetrics:
        """Ask the box's worker. A box without a container, not made yet or lost, has used nothing. Raises
        NotFoundError for an unknown box."""
        box = await self._turns.get(prefix, id_or_name)
        try:
            found = await self._calls.get_box_metrics(box.worker_id, ref(box))
        except errors.NotFoundError:
            found = pb.BoxMetrics()
        return BoxMetrics(
            commands_executed=found.commands_executed,
            exec_errors=found.exec_errors,
            input_bytes=found.input_bytes,
            output_bytes=found.output_bytes,
            cpu_percent=_known(found, "cpu_percent"),
            memory_bytes=_known(found, "memory_bytes"),
            network_bytes_sent=_known(found, "network_bytes_sent"),
            network_bytes_received=_known(found, "network_bytes_received"),
            memory_limit_kills=_known(found, "memory_limit_kills"),
            commands_by_engine=_known(found, "commands_by_engine"),
            boot=BootTiming(*(_known(found.boot_timing, field) for field in BootTiming._fields)),
        )


def _known(message: pb.BoxMetrics | pb.BootTiming, field: str) -> Any:
    """A field's value; None where the worker left it unset."""
    return getattr(message, field) if message.HasField(field) else None
