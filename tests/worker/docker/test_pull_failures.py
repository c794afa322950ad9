"""Which failures of a pull may be the host's own, by what engines of all versions say."""

from __future__ import annotations

import grpc
import pytest

from boxlite_server import references, rpc
from boxlite_server.errors import BoxliteError, ImageError, LocalImageError, ResourceExhaustedError
from boxlite_server.worker.docker.storage.images import _unpulled

PRIVATE = "registry.example:5000/team/platform-lookup:1"

# What the image or the client is to blame for.
EVERYWHERE = [
    f"manifest for {PRIVATE} not found: manifest unknown: manifest unknown",
    "repository registry.example:5000/team/x not found: name unknown: repository name not known to registry",
    f'failed to resolve reference "{PRIVATE}": {PRIVATE}: not found',
    "invalid reference format",
]
# What may be different on another host.
HERE = [
    "no matching manifest for linux/arm64/v8 in the manifest list entries",
    f'failed to resolve "{PRIVATE}": no match for platform in manifest: not found',
    "image with reference x was found but does not match the specified platform: wanted linux/arm64, actual: linux/386",
    'Get "https://registry.example:5000/v2/": dial tcp: lookup registry.example on 10.0.0.2:53: no such host',
    'Get "https://registry.example:5000/v2/": dial tcp 10.0.0.3:5000: connect: connection refused',
    'Get "https://registry-1.docker.io/v2/": net/http: request canceled while waiting for connection',
    'Get "https://registry.example:5000/v2/": net/http: TLS handshake timeout',
    'Get "https://registry.example:5000/v2/": x509: certificate signed by unknown authority',
    'Get "https://registry.example:5000/v2/": http: server gave HTTP response to HTTPS client',
    "toomanyrequests: You have reached your pull rate limit.",
    'Get "https://registry.example:5000/v2/team/x/manifests/1": no basic auth credentials',
    "unauthorized: authentication required",
    "pull access denied for team/x, repository does not exist or may require 'docker login': denied",
    'error getting credentials - err: exec: "docker-credential-x": executable file not found in $PATH, out: ``',
    "received unexpected HTTP status: 503 Service Unavailable",
    "failed to register layer: unexpected EOF",
]


def unpulled(reason: str, image: str = PRIVATE) -> BoxliteError:
    return _unpulled(references.parse(image).tagged(), reason)


@pytest.mark.parametrize("reason", EVERYWHERE)
def test_what_every_host_would_hear(reason: str) -> None:
    assert type(unpulled(reason)) is ImageError


@pytest.mark.parametrize("reason", HERE)
def test_what_another_host_may_not_hear(reason: str) -> None:
    error = unpulled(reason)
    assert type(error) is LocalImageError
    assert reason in error.message


def test_a_public_image_that_is_denied_does_not_exist() -> None:
    reason = "pull access denied for alpin, repository does not exist or may require 'docker login'"
    assert type(unpulled(reason, "alpin:latest")) is ImageError


def test_a_full_disk_is_told_as_one() -> None:
    error = unpulled("write /var/lib/docker/tmp/GetImageBlob1: no space left on device")
    assert isinstance(error, ResourceExhaustedError)


def test_what_a_registry_says_is_cut_off() -> None:
    assert len(unpulled("x" * 100_000).message) < 1200


class Aborted(Exception):
    pass


class Context:
    """Takes what a failed call is answered with, and gives it as the caller's error."""

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self.metadata = grpc.aio.Metadata(*metadata)

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), self.metadata, details)
        raise Aborted


@pytest.mark.parametrize("kind", [ImageError, LocalImageError])
def test_the_difference_reaches_the_coordinator(kind: type[ImageError]) -> None:
    context = Context()
    with pytest.raises(Aborted):
        rpc.abort(context, kind("why"))  # type: ignore[arg-type]
    error = rpc.from_rpc_error(context.error, "worker")
    assert (type(error), error.message, error.status, error.code) == (kind, "why", 422, "image_pull_failed")
