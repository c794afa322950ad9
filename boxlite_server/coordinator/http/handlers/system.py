"""The server's configuration, health and readiness."""

from __future__ import annotations

from typing import Any

from .... import rpc
from ...core import Core
from ...fleet.placement import DISK_LIMITS
from ...spec import (
    DEFAULT_CPUS,
    DEFAULT_MEMORY_MIB,
    DEFAULT_SECURITY,
    MAX_CPUS,
    MAX_DISK_SIZE_GB,
    MAX_MEMORY_MIB,
    MAX_TIMEOUT_SECONDS,
    SECURITY_PRESETS,
)
from ...states import WorkerStatus
from ...store import ANY_PREFIX
from .. import idempotency


async def get_config(core: Core) -> Any:
    workers = [c.worker for c in await core.fleet.candidates() if c.reachable]
    disk_limits = sorted({w.disk_limit for w in workers if w.disk_limit in DISK_LIMITS})
    return {
        "defaults": {
            "cpus": DEFAULT_CPUS,
            "memory_mib": DEFAULT_MEMORY_MIB,
            "disk_size_gb": None,
            "auto_stop": core.policy.default_auto_stop,
            "auto_delete": core.policy.default_auto_delete,
            "auto_remove": False,
            "security_preset": DEFAULT_SECURITY,
        },
        "overrides": {},
        "authentication": "none" if await core.authenticator.is_open() else "bearer",
        "quotas": (await core.quotas.of(ANY_PREFIX))._asdict(),
        "capabilities": {
            "max_cpus": MAX_CPUS,
            "max_memory_mib": MAX_MEMORY_MIB,
            "tty_enabled": True,
            "streaming_enabled": True,
            "snapshots_enabled": True,
            "clone_enabled": True,
            "export_enabled": True,
            "import_enabled": True,
            "linux_capabilities_enabled": True,
            "max_disk_size_gb": MAX_DISK_SIZE_GB if disk_limits else None,
            "disk_limits": disk_limits,
            "max_boxes_per_prefix": core.policy.max_boxes_per_prefix,
            "max_boxes_per_path_prefix": core.policy.max_boxes_per_prefix,
            "max_concurrent_executions": rpc.MAX_EXECUTIONS,
            "file_transfer_max_bytes": None,
            "exec_timeout_max_seconds": MAX_TIMEOUT_SECONDS,
            "supported_security_presets": list(SECURITY_PRESETS),
            "idempotency_key_lifetime": idempotency.LIFETIME,
        },
    }


async def get_health(core: Core) -> Any:
    return {"status": "ok"}


async def get_readiness(core: Core) -> Any:
    found = [candidate.worker for candidate in await core.fleet.candidates() if candidate.reachable]
    active = sum(worker.status == WorkerStatus.ACTIVE and core.fleet.is_heard(worker) for worker in found)
    if active:
        return {"status": "ready", "active_workers": active, "reason": None}
    return {"status": "not_ready", "active_workers": 0, "reason": "no active worker has been heard yet"}, 503
