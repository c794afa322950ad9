"""The specs, as linters for OpenAPI see them: what these have to say is answered in their configuration files."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support import spec_lint

pytestmark = pytest.mark.timeout(600)  # the linters may have to be installed first


@pytest.fixture(scope="module", autouse=True)
def with_linters() -> None:
    if reason := spec_lint.missing():
        pytest.skip(reason)


def test_linters_have_nothing_to_say_of_the_spec() -> None:
    assert not "\n".join(spec_lint.complaints(spec_lint.ROOT / "openapi.yaml"))


def test_linters_have_nothing_to_say_of_the_client_spec(tmp_path: Path) -> None:
    assert not "\n".join(spec_lint.complaints(spec_lint.write_client_spec(tmp_path)))


def test_both_linters_find_what_is_wrong(tmp_path: Path) -> None:
    spec = yaml.safe_load((spec_lint.ROOT / "openapi.yaml").read_text())
    del spec["paths"]["/v1/config"]["get"]["summary"], spec["paths"]["/v1/config"]["get"]["description"]
    bad = tmp_path / "openapi.yaml"
    bad.write_text(yaml.safe_dump(spec))
    redocly, spectral = spec_lint.complaints(bad)
    assert "operation-summary" in redocly
    assert "operation-description" in spectral
