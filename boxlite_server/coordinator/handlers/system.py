"""What the server is and whether it is well."""

from __future__ import annotations

from typing import Any

from .. import boxspec
from ..core import Core


async def get_config(core: Core) -> Any:
    workers = [c.worker for c in core.fleet.candidates() if c.reachable]
    return {
        "defaults": {
            "cpus": boxspec.DEFAULT_CPUS,
            "memory_mib": boxspec.DEFAULT_MEMORY_MIB,
            "auto_stop": 0,
            "auto_delete": 0,
            "auto_remove": False,
        },
        "overrides": {},
        "capabilities": {
            "max_cpus": max((w.cpus for w in workers), default=0),
            "max_memory_mib": max((w.memory_mib for w in workers), default=0),
            "tty_enabled": True,
            "streaming_enabled": True,
            "snapshots_enabled": False,
            "clone_enabled": False,
            "export_enabled": False,
            "import_enabled": False,
            "linux_capabilities_enabled": True,
            "idempotency_key_lifetime": None,
        },
    }


async def get_health(core: Core) -> Any:
    return {"status": "ok"}


async def get_readiness(core: Core) -> Any:
    active = sum(c.reachable and c.worker.status == "active" for c in core.fleet.candidates())
    if active:
        return {"status": "ready", "active_workers": active, "reason": None}
    return {"status": "not_ready", "active_workers": 0, "reason": "no worker is active"}, 503
