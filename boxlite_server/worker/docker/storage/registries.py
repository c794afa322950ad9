"""Which registries images are pulled from, and what is told of a pull that failed.

The engine pulls with the host's place in the network, so a client who names a registry makes the host ask there, and
hears what was answered.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection
from typing import NamedTuple

from .... import references
from ....errors import BoxliteError, ImageError, LocalImageError, ResourceExhaustedError
from ..engine import is_full

PUBLIC = "public"  # stands for all registries at public addresses

_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv4 addresses in IPv6
NEEDS_NO_LOGIN = f"{references.DEFAULT_REGISTRY}/library/"  # images of which anybody may pull


class _Kind(NamedTuple):
    """A kind of failure: how engines of all versions tell it, and how it is told here. The engine's own text names
    hosts and addresses, and repeats what they have answered."""

    pattern: re.Pattern[str]
    text: str
    everywhere: bool = False  # any host would hear the same


def _kind(pattern: str, text: str, *, everywhere: bool = False) -> _Kind:
    return _Kind(re.compile(pattern, re.IGNORECASE), text, everywhere)


_PLATFORM = "the image has no variant for the platform of this host (no matching manifest)"
_KINDS = (
    _kind(r"no matching manifest|no match for platform|does not match the specified platform", _PLATFORM),
    _kind(
        r"manifest unknown|name unknown|: not found$",
        "it is not found in its registry (manifest unknown)",
        everywhere=True,
    ),
    _kind(r"invalid reference", "the engine takes its name for none (invalid reference)", everywhere=True),
    _kind(
        r"repository does not exist",
        "pull access denied: its repository does not exist, or may be read only after a login",
    ),
    _kind(r"toomanyrequests|rate limit", "the registry limits how much this host may pull (toomanyrequests)"),
    _kind(r"x509|certificate|HTTP response to HTTPS", "the registry is not trusted by this host (TLS)"),
    _kind(
        r"credential|unauthorized|authentication|denied|forbidden",
        "access denied: this host has no credentials that the registry takes",
    ),
    _kind(
        r"dial |lookup |no such host|connection re|timeout|timed out|request canceled|deadline exceeded|unreachable",
        "this host does not reach the registry",
    ),
    _kind(r"unexpected HTTP status|HTTP response|status code|status from", "the registry answers with an error"),
)
_OTHER = "the engine or the registry gave it up; the log of the worker says why"


def failure(image: references.Reference, reason: str) -> BoxliteError:
    """The error of a pull that the engine gave up for that reason. Only an `ImageError` that is no `LocalImageError`
    says that no other host could do better."""
    reason = reason.strip()
    what = f"image '{image}' cannot be pulled"
    if is_full(reason):
        return ResourceExhaustedError(f"{what}: no space left (the disk of the container engine is full)")
    kind = next((kind for kind in _KINDS if kind.pattern.search(reason)), None)
    text = f"{what}: {kind.text if kind else _OTHER}"
    is_missing = "repository does not exist" in reason and image.repository.startswith(NEEDS_NO_LOGIN)
    return ImageError(text) if is_missing or (kind and kind.everywhere) else LocalImageError(text)


class Registries:
    """The registries that the operator allows, as `HOST[:PORT]`, or `PUBLIC`; without any: those at public
    addresses."""

    def __init__(self, allowed: Collection[str] = ()) -> None:
        self._allowed = frozenset(name.lower() for name in allowed or (PUBLIC,))

    def admit(self, image: references.Reference) -> None:
        """Raise `LocalImageError` if the image may not be pulled."""
        registry = image.repository.partition("/")[0].lower()
        if registry in self._allowed:
            return
        # One text for all that is not public, so that nobody learns which names there are inside.
        if PUBLIC not in self._allowed or not (registry == references.DEFAULT_REGISTRY or _is_public(registry)):
            raise LocalImageError(
                f"image '{image}' cannot be pulled: this worker pulls nothing from {registry}, which is not known "
                "to be a public registry, or is not allowed; its operator can allow it with "
                f"--allow-registry {registry}"
            )


def _is_public(registry: str) -> bool:
    """Whether all addresses of the registry, which may come with a port, can be reached from everywhere."""
    host, _, port = registry.rpartition(":") if re.search(r":\d+$", registry) else (registry, "", "")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port or 443), type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return False
    return all(is_public_address(str(entry[4][0])) for entry in found)


def is_public_address(text: str) -> bool:
    """Whether an IP address is one of the public internet, also where it is written in another family's form."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public_address(str(inner))
    return address.is_global and not address.is_multicast
