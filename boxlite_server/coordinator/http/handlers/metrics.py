"""Counters of a prefix, and what one box uses."""

from __future__ import annotations

from typing import Any

from .... import errors
from ...._gen import worker_pb2 as pb
from ...core import Core
from ...domain.turns import ref

CALL_SECONDS = 30.0


async def get_runtime_metrics(core: Core, prefix: str) -> Any:
    counters = await core.store.counters(prefix)
    return {
        "boxes_created_total": counters.boxes_created,
        "boxes_failed_total": counters.boxes_failed,
        "boxes_stopped_total": counters.boxes_stopped,
        "num_running_boxes": await core.store.count_boxes(prefix, "running"),
        "total_commands_executed": counters.commands_executed,
        "total_exec_errors": counters.exec_errors,
    }


async def get_box_metrics(core: Core, prefix: str, box_id: str) -> Any:
    box = await core.boxes.get(prefix, box_id)
    try:
        found: pb.BoxMetrics = await core.fleet.call(box.worker_id, "GetBoxMetrics", ref(box), timeout=CALL_SECONDS)
    except errors.NotFoundError:
        found = pb.BoxMetrics()  # a box without a container: not made yet, or lost
    boot = found.boot_timing
    return {
        "commands_executed_total": found.commands_executed,
        "exec_errors_total": found.exec_errors,
        "bytes_sent_total": found.input_bytes,
        "bytes_received_total": found.output_bytes,
        "cpu_percent": _known(found, "cpu_percent"),
        "memory_bytes": _known(found, "memory_bytes"),
        "network_bytes_sent": _known(found, "network_bytes_sent"),
        "network_bytes_received": _known(found, "network_bytes_received"),
        "network_tcp_connections": None,
        "network_tcp_errors": None,
        "boot_timing": {
            "total_create_ms": _known(boot, "total_ms"),
            "guest_boot_ms": None,
            "filesystem_setup_ms": None,
            "image_prepare_ms": _known(boot, "image_prepare_ms"),
            "guest_rootfs_ms": None,
            "box_config_ms": _known(boot, "box_config_ms"),
            "box_spawn_ms": _known(boot, "box_spawn_ms"),
            "container_init_ms": _known(boot, "container_init_ms"),
        },
    }


def _known(message: pb.BoxMetrics | pb.BootTiming, field: str) -> Any:
    """A field's value; None where the worker could not measure it."""
    return getattr(message, field) if message.HasField(field) else None
