"""The principal of a caller, and tokens and tickets for clients that cannot send an API key directly."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import connexion

from ....formats import timestamp
from ...core import Core
from ...tenants import tickets
from ...tenants.prefixes import DEFAULT
from ..edge import ENTRY, canonical, client_address
from ..errors import PRINCIPAL


async def get_current_principal(core: Core) -> Any:
    principal = connexion.request.scope[PRINCIPAL]
    return {
        "sub": principal.sub,
        "principal_type": "service_account",
        "email": None,
        "display_name": None,
        # Paths without a prefix mean the caller's own; a client given `default` would get errors of the old form.
        "path_prefix": None if principal.own_prefix == DEFAULT else principal.own_prefix,
        "scopes": sorted(principal.scopes),
        "expires_at": timestamp(principal.expires_at),
        "quotas": (await core.quotas.of(principal.own_prefix))._asdict(),
        "used": (await core.store.use_of(principal.own_prefix))._asdict(),
    }


async def create_token(core: Core, body: dict[str, Any]) -> Any:
    scope = connexion.request.scope
    grant = await core.authenticator.issue_token(body["client_secret"], client_address(scope))
    scope[ENTRY].principal = grant.principal
    return {
        "access_token": grant.access_token,
        "token_type": "bearer",
        "expires_in": grant.seconds,
        "scope": " ".join(sorted(grant.principal.scopes)),
    }


async def create_ticket(core: Core, prefix: str, body: dict[str, Any]) -> Any:
    principal = connexion.request.scope[PRINCIPAL]
    path, _, query = body["path"].partition("?")
    target = tickets.target(canonical(unquote(path), principal), query)
    seconds = body.get("seconds") or tickets.MAX_SECONDS
    ticket, expires_at = await core.authenticator.issue_ticket(principal, target, seconds)
    return {"ticket": ticket, "expires_at": timestamp(expires_at)}
