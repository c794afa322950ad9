"""Names of images and what they mean."""

from __future__ import annotations

import pytest

from boxlite_server import references
from boxlite_server.errors import InvalidArgumentError

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("name", "repository", "tag", "digest"),
    [
        ("alpine", "docker.io/library/alpine", "", ""),
        ("alpine:3.20", "docker.io/library/alpine", "3.20", ""),
        ("library/alpine", "docker.io/library/alpine", "", ""),
        ("docker.io/alpine", "docker.io/library/alpine", "", ""),
        ("index.docker.io/library/alpine:x", "docker.io/library/alpine", "x", ""),
        ("me/tool_box:v1", "docker.io/me/tool_box", "v1", ""),
        ("ghcr.io/me/a/b:v1", "ghcr.io/me/a/b", "v1", ""),
        ("localhost/a", "localhost/a", "", ""),
        ("localhost:5000/a:b", "localhost:5000/a", "b", ""),
        ("127.0.0.1:5000/a", "127.0.0.1:5000/a", "", ""),
        ("[::1]:5000/a:b", "[::1]:5000/a", "b", ""),
        (f"alpine@{DIGEST}", "docker.io/library/alpine", "", DIGEST),
        (f"alpine:3@{DIGEST}", "docker.io/library/alpine", "3", DIGEST),
    ],
)
def test_the_full_form(name: str, repository: str, tag: str, digest: str) -> None:
    reference = references.parse(name)
    assert reference == (repository, tag, digest)
    assert references.parse(str(reference)) == reference


@pytest.mark.parametrize(
    "name",
    ["", " ", "A", "a:", "a:b:c", "a//b", "/a", "a/", "a@sha256:12", "-a", "a b", "a:-b", "a\n", "a:b\n", "é", "_a/b"],
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="no image name"):
        references.parse(name)


def test_the_tag_that_is_meant() -> None:
    assert str(references.parse("alpine").tagged()) == "docker.io/library/alpine:latest"
    assert str(references.parse("alpine:3").tagged()) == "docker.io/library/alpine:3"
    assert str(references.parse(f"alpine@{DIGEST}").tagged()) == f"docker.io/library/alpine@{DIGEST}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [(DIGEST, True), (DIGEST[:19], True), (DIGEST[:18], False), ("alpine", False), (f"a@{DIGEST}", False)],
)
def test_a_digest_by_itself(text: str, expected: bool) -> None:
    assert references.is_digest(text) is expected
