"""Image names: the short forms that people write, and the full form that they stand for.

`alpine`, `library/alpine:latest` and `docker.io/library/alpine` name one image. Code that compares two names
compares their full forms.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .errors import InvalidArgumentError

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"

_REGISTRY = re.compile(r"(\[[0-9a-fA-F:]+\]|[a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?)(:\d{1,5})?")
_COMPONENT = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_DIGEST_START = re.compile(r"sha256:[0-9a-f]{12,64}")


class Reference(NamedTuple):
    """An image name in full: `repository` includes the registry; `tag` and `digest` are empty if the name has none."""

    repository: str
    tag: str
    digest: str

    def __str__(self) -> str:
        return self.repository + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def tagged(self) -> Reference:
        """Return the reference with the default tag if it has neither a tag nor a digest."""
        return self if self.tag or self.digest else self._replace(tag=DEFAULT_TAG)


def parse(name: str) -> Reference:
    """Return the full form of `name[:tag][@digest]`. Raises InvalidArgumentError for a malformed name."""
    rest, at, digest = name.partition("@")
    head, slash, last = rest.rpartition("/")
    last, colon, tag = last.partition(":")
    registry, components = _split(head.split("/") if slash else [], last)
    if (
        not all(_COMPONENT.fullmatch(component) for component in components)
        or not _REGISTRY.fullmatch(registry)
        or (colon and not _TAG.fullmatch(tag))
        or (at and not _DIGEST.fullmatch(digest))
    ):
        raise InvalidArgumentError(
            f"'{name}' is no image name; image names have the form [REGISTRY/]NAME[:TAG][@sha256:…]"
        )
    return Reference("/".join((registry, *components)), tag, digest)


def _split(head: list[str], last: str) -> tuple[str, list[str]]:
    """Split a name into registry and path. The first part is a registry if it looks like a host, not like a user."""
    if head and (head[0] == "localhost" or "." in head[0] or ":" in head[0]):
        registry = DEFAULT_REGISTRY if head[0] == f"index.{DEFAULT_REGISTRY}" else head[0]
        path = [*head[1:], last]
    else:
        registry, path = DEFAULT_REGISTRY, [*head, last]
    if registry == DEFAULT_REGISTRY and len(path) == 1:
        path = ["library", *path]
    return registry, path


def is_digest(text: str) -> bool:
    """Whether `text` is a digest without a name, of which the first 12 digits suffice."""
    return _DIGEST_START.fullmatch(text) is not None
