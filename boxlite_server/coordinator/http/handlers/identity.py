"""The principal of a caller, and tokens for clients that cannot send an API key directly."""

from __future__ import annotations

from typing import Any

import connexion

from ...auth import SCOPES, TOKEN_SECONDS
from ...core import Core
from ..errors import PRINCIPAL


async def get_current_principal(core: Core) -> Any:
    principal = connexion.request.scope[PRINCIPAL]
    return {
        "sub": principal.sub,
        "principal_type": "service_account",
        "email": None,
        "display_name": None,
        "path_prefix": None,  # a box path without a prefix means the caller's own
        "scopes": list(SCOPES),
        "expires_at": None,
    }


async def create_token(core: Core, body: dict[str, Any]) -> Any:
    token = core.authenticator.issue_token(body["client_secret"])
    return {"access_token": token, "token_type": "bearer", "expires_in": TOKEN_SECONDS}
