"""The scopes of API keys. openapi.yaml says which operation needs which scope, and what each scope is for."""

from __future__ import annotations

EXECUTE = "box:exec"

# Of a tenant: what belongs to its own prefix.
TENANT = (
    "box:read",
    "box:write",
    EXECUTE,
    "box:delete",
    "snapshot:read",
    "snapshot:write",
    "snapshot:delete",
    "image:read",
    "image:write",
    "volume:read",
    "volume:write",
)
ADMIN = "worker:admin"  # of an operator: the fleet
CLIENT = (*TENANT, ADMIN)  # all that a client's key can have
WORKER = "worker:register"  # of a worker: registration and heartbeats; no client's key has it
