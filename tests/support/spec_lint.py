"""What redocly and spectral say of the specs. `make lint` runs this module, where Node is there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from boxlite_server import specs
from boxlite_server.coordinator import client_spec
from boxlite_server.coordinator.http.routing import is_served
from support import node

ROOT = Path(__file__).parents[2]
OLDEST_NODE = 20
PACKAGES = ("@redocly/cli@2.77.0", "@stoplight/spectral-cli@6.16.3")


def missing() -> str | None:
    """Why the specs cannot be linted here; None when they can."""
    return node.older_than(OLDEST_NODE)


def complaints(spec: Path) -> Iterator[str]:
    """What each of the linters has to say of a spec, under the rules at the top of the repository."""
    programs = node.packages("spec-lint", *PACKAGES) / "node_modules" / ".bin"
    for command in (
        [programs / "redocly", "lint", f"--config={ROOT / 'redocly.yaml'}", spec],
        [programs / "spectral", "lint", f"--ruleset={ROOT / '.spectral.yaml'}", "--fail-severity=hint", spec],
    ):
        quiet = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
        done = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True, check=False)
        if done.returncode:
            yield f"{done.stdout}{done.stderr}"


def write_client_spec(directory: Path) -> Path:
    """Write the client spec, as the server derives it, and return its path."""
    path = directory / "openapi-client.yaml"
    path.write_bytes(client_spec.as_yaml(client_spec.derive(specs.openapi(), is_served)))
    return path


if __name__ == "__main__":
    if reason := missing():
        print(f"openapi.yaml is not linted by redocly and spectral: {reason}")
        sys.exit()
    with tempfile.TemporaryDirectory() as directory:
        found = [*complaints(ROOT / "openapi.yaml"), *complaints(write_client_spec(Path(directory)))]
    sys.exit("\n".join(found) or None)
