"""The counters of a prefix, the counters and gauges of one box, and the metrics of a coordinator."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from ....metrics import registry
from ... import gauges
from ...core import Core
from ...states import BoxStatus
from ...tenants.authenticator import Refusal


async def get_runtime_metrics(core: Core, prefix: str) -> Any:
    counters = await core.counting.counters(prefix)
    return {
        "boxes_created_total": counters.boxes_created,
        "boxes_failed_total": counters.boxes_failed,
        "boxes_stopped_total": counters.boxes_stopped,
        "warm_claims_total": counters.warm_claims,
        "warm_misses_total": counters.warm_misses,
        "num_running_boxes": await core.store.count_boxes(prefix, BoxStatus.RUNNING),
        "total_commands_executed": counters.commands_executed,
        "total_exec_errors": counters.exec_errors,
    }


async def get_box_metrics(core: Core, prefix: str, box_id: str) -> Any:
    used = await core.metrics.of_box(prefix, box_id)
    return {
        "commands_executed_total": used.commands_executed,
        "exec_errors_total": used.exec_errors,
        "bytes_sent_total": used.input_bytes,
        "bytes_received_total": used.output_bytes,
        "cpu_percent": used.cpu_percent,
        "memory_bytes": used.memory_bytes,
        "memory_limit_kills_total": used.memory_limit_kills,
        "commands_by_engine_total": used.commands_by_engine,
        "network_bytes_sent": used.network_bytes_sent,
        "network_bytes_received": used.network_bytes_received,
        "network_tcp_connections": None,
        "network_tcp_errors": None,
        "boot_timing": {
            "total_create_ms": used.boot.total_ms,
            "guest_boot_ms": None,
            "filesystem_setup_ms": None,
            "image_prepare_ms": used.boot.image_prepare_ms,
            "guest_rootfs_ms": None,
            "box_config_ms": used.boot.box_config_ms,
            "box_spawn_ms": used.boot.box_spawn_ms,
            "container_init_ms": used.boot.container_init_ms,
        },
    }


async def get_coordinator_metrics(core: Core) -> Any:
    refused = core.authenticator.refused
    return {"refused_requests_total": {reason.value: refused[reason] for reason in Refusal}}


async def get_prometheus_metrics(core: Core) -> Response:
    return Response(registry.text(await gauges.read(core)), media_type=registry.CONTENT_TYPE)
