"""Which failures of a pull may be the host's own, by what engines of all versions say."""

from __future__ import annotations

import grpc
import pytest

from boxlite_server import references, rpc
from boxlite_server.errors import (
    BoxliteError,
    ImageError,
    LocalImageError,
    NotFoundError,
    PrivateImageError,
    ResourceExhaustedError,
)
from boxlite_server.worker.docker import engine
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.docker.storage.registries import Registries, failure, is_public_address
from boxlite_server.worker.runtime import Owner

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
    return failure(references.parse(image).tagged(), reason)


@pytest.mark.parametrize("reason", EVERYWHERE)
def test_what_every_host_would_hear(reason: str) -> None:
    assert type(unpulled(reason)) is ImageError


@pytest.mark.parametrize("reason", HERE)
def test_what_another_host_may_not_hear(reason: str) -> None:
    error = unpulled(reason)
    assert type(error) is LocalImageError


INSIDE = [
    *(reason for reason in HERE if "registry.example:5000/v2" in reason),
    'Get "http://169.254.169.254/latest/meta-data/iam": dial tcp 169.254.169.254:80: connect: connection refused',
    'Get "https://vault.corp/v2/": dial tcp: lookup vault.corp on 10.0.0.2:53: server misbehaving',
    'error parsing HTTP 404 response body: invalid character: "<html>root:x:0:0</html>"',
    'failed to authorize: failed to fetch anonymous token: Get "http://10.0.0.9/token?x": EOF',
    'received unexpected HTTP status: 200 from [fd00::1]:22 "SSH-2.0-OpenSSH_9.2"',
    "write /var/lib/docker/tmp/x: no space left on device",
]


@pytest.mark.parametrize("reason", INSIDE)
def test_nothing_of_hosts_inside_is_told(reason: str) -> None:
    told = unpulled(reason, "registry.public/x:1").message
    for secret in ("10.0.0", "169.254", "fd00", "vault", "root:x", "SSH", "token?", "/v2/", "refused", "/var/lib"):
        assert secret not in told


@pytest.mark.parametrize("port", ["22", "80"])
def test_an_open_port_is_not_told_from_a_closed_one(port: str) -> None:
    answers = [
        "connect: connection refused",
        "i/o timeout",
        "connect: no route to host",
        "read: connection reset by peer",
    ]
    told = {unpulled(f'Get "https://h:{port}/v2/": dial tcp 10.0.0.3:{port}: {answer}').message for answer in answers}
    assert len(told) == 1


# ---- which registries ----


REFUSED = [
    *("127.0.0.1:5000", "localhost:5000", "LOCALHOST:5000", "[::1]:5000", "10.1.2.3", "192.168.0.1:80", "172.16.0.1"),
    *("169.254.169.254", "169.254.169.254:80", "100.64.0.1", "0.0.0.0:1", "[fd00::1]:5000", "[fe80::1]", "224.0.0.1"),
    *(
        "[::ffff:127.0.0.1]:5000",
        "[::ffff:a9fe:a9fe]",
        "[64:ff9b::a00:1]",
        "[2002:7f00:1::]",
        "2130706433:80",
        "127.1:80",
    ),
    *("0x7f000001.:80", "nowhere.invalid", "metadata.invalid:80"),
]


@pytest.mark.parametrize("registry", REFUSED)
def test_what_is_no_public_registry_is_not_asked(registry: str) -> None:
    image = references.Reference(f"{registry}/team/x", "1", "")
    texts = set()
    for allowed in ((), ("public",), ("other.example", "public"), ("other.example",)):
        with pytest.raises(LocalImageError, match="--allow-registry") as refused:
            Registries(allowed).admit(image)
        texts.add(refused.value.message)
    assert len(texts) == 1
    Registries((registry,)).admit(image)


def test_the_operator_restricts_registries() -> None:
    image, hub = references.parse("93.184.215.14/x:1"), references.parse("alpine").tagged()
    for allowed in ((), ("public",), ("127.0.0.1:5000", "public"), ("93.184.215.14", "docker.io")):
        Registries(allowed).admit(image)
        Registries(allowed).admit(hub)
    for refused in (image, hub):
        with pytest.raises(LocalImageError, match="--allow-registry"):
            Registries(("ghcr.io",)).admit(refused)


@pytest.mark.parametrize("registry", ["127.0.0.1:5000", "169.254.169.254"])
def test_the_engine_hears_nothing_of_a_pull_that_is_refused(registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def inspect_image(self, reference: str) -> dict[str, str]:
            raise NotFoundError(f"no such image: {reference}")

        def pull(self, *_: object, **__: object) -> list[dict[str, str]]:
            asked.append(registry)
            return []

    asked: list[str] = []
    monkeypatch.setattr(engine.Engine, "api", Api())
    images = DockerRuntime(lambda: Owner("c", "w"), "unix:///nowhere").images
    for pull in (lambda name: list(images.pull(name)), images.get):
        with pytest.raises(LocalImageError, match="--allow-registry"):
            pull(f"{registry}/team/x:1")
    assert not asked


def test_addresses_that_are_public() -> None:
    assert is_public_address("93.184.215.14")
    assert is_public_address("2606:2800:21f:cb07:6820:80da:af6b:8b2c")
    assert not is_public_address("fe80::1%eth0")


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


@pytest.mark.parametrize("kind", [ImageError, LocalImageError, PrivateImageError])
def test_the_difference_reaches_the_coordinator(kind: type[ImageError]) -> None:
    context = Context()
    with pytest.raises(Aborted):
        rpc.abort(context, kind("why"))  # type: ignore[arg-type]
    error = rpc.from_rpc_error(context.error, "worker")
    assert (type(error), error.message, error.status, error.code) == (kind, "why", 422, "image_pull_failed")
