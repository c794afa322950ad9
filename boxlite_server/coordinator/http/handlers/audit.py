"""The audit, for operators: list."""

from __future__ import annotations

from typing import Any

from ...core import Core
from ...store import AuditFilter
from ...tenants import audit


async def list_audit(
    core: Core,
    since: float | None = None,
    key: str | None = None,
    audit_prefix: str | None = None,
    action: str | None = None,
    status: str | None = None,
    request_id: str | None = None,
    limit: int = 100,
) -> Any:
    wanted = AuditFilter(
        since=since,
        key_ids=None if key is None else await core.store.key_ids(key),
        prefix=audit_prefix,
        action=action,
        statuses=None if status is None else _statuses(status),
        request_id=request_id,
    )
    return {"lines": [audit.as_json(line) for line in await core.store.find_audit(wanted, limit)]}


def _statuses(text: str) -> range:
    """The statuses of a class, such as 4xx, or one."""
    if text.endswith("xx"):
        return range(int(text[0]) * 100, int(text[0]) * 100 + 100)
    return range(int(text), int(text) + 1)
