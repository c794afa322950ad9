"""What attacks from outside come to, with no key and with the key of a tenant: neither coordinator nor worker is
harmed, and others are served meanwhile."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from support.boxes import create, execute, start
from support.cluster import Cluster, call, wait_until
from support.outside import PATIENCE, connection, exchange, in_threads, unharmed

from boxlite_server.cli import main

GET = b"GET /v1/health HTTP/1.1\r\nHost: x\r\n"
CALLS = 800  # half-open ones, more than half of what a worker serves at once
CONNECTIONS = 10_000
WRONG_KEYS = 1000
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def cluster(new_shared_cluster: Any, test_image: str) -> Cluster:
    cluster: Cluster = new_shared_cluster()
    cluster.start_with_keys()
    cluster.api_key = cluster.new_key("--prefix", "acme")
    return cluster


@pytest.fixture(scope="module")
def box(cluster: Cluster) -> Iterator[str]:
    box = create(cluster, name="web")
    start(cluster, box)
    yield box
    assert cluster.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204


def bearer(cluster: Cluster) -> bytes:
    return f"Authorization: Bearer {cluster.api_key}\r\n".encode()


def head(cluster: Cluster, line: str, *headers: str) -> bytes:
    """The head of a request with the tenant's key."""
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"{line} HTTP/1.1\r\nHost: x\r\n".encode() + bearer(cluster) + lines.encode("latin1") + b"\r\n"


# ---- connections ----


def test_slow_requests_keep_nobody_waiting(cluster: Cluster) -> None:
    assert cluster.coordinator
    json_head = head(cluster, "POST /v1/boxes", "Content-Type: application/json", "Content-Length: 1000")
    with unharmed(cluster, cluster.coordinator) as honest, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connection(cluster.port)) for _ in range(600)]
        for number, sock in enumerate(slow):
            sock.sendall(json_head if number % 2 else GET)
        for letter in b"X-Slow: byte by byte":
            for sock in slow:
                with contextlib.suppress(ConnectionError):
                    sock.sendall(bytes([letter]))
            honest.is_served(1)


def test_10_000_connections_shut_nobody_out(cluster: Cluster) -> None:
    assert cluster.coordinator
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < CONNECTIONS + 2000:
        pytest.skip(f"this machine allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, CONNECTIONS + 2000), hard))
    for is_told in (False, True):  # what the first wave takes is kept for the next; there is to be no more
        watched = [cluster.coordinator] if is_told else []
        with unharmed(cluster, *watched) as honest, contextlib.ExitStack() as stack:
            for number in range(CONNECTIONS):
                sock = stack.enter_context(connection(cluster.port))
                if number % 2:
                    sock.sendall(GET)
                if number % 1000 == 0:
                    honest.is_served(1)
            honest.is_served()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_half_open_calls_to_the_worker_keep_no_command_waiting(cluster: Cluster, box: str) -> None:
    [worker] = cluster.workers
    with unharmed(cluster, worker) as honest, contextlib.ExitStack() as stack:
        for _ in range(400):  # connections that never speak
            stack.enter_context(connection(worker.port))
        channels = [
            stack.enter_context(
                grpc.insecure_channel(f"127.0.0.1:{worker.port}", options=[("grpc.use_local_subchannel_pool", 1)])
            )
            for _ in range(8)
        ]
        never = stack.enter_context(_Never())
        calls = [
            channels[number % 8].stream_stream("/boxlite.worker.v1.WorkerService/PutFiles")(never, timeout=PATIENCE)
            for number in range(CALLS)
        ]
        for _ in range(5):
            status, _, answer = cluster.http("POST", f"/v1/boxes/{box}/run", {"command": "echo", "args": ["on"]})
            assert (status, answer["stdout"]) == (200, "on\n")
        honest.is_served()
        for call_ in calls:
            call_.cancel()


class _Never:
    """Requests of a call that never come."""

    def __init__(self) -> None:
        self._pipe = os.pipe()

    def __enter__(self) -> _Never:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._pipe[1])  # which ends all waits

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        os.read(self._pipe[0], 1)
        raise StopIteration


# ---- sizes ----

LARGE = "x" * 60_000
OVERSIZED_HEADS: dict[str, tuple[str, ...]] = {
    "a path": (f"GET /v1/boxes/{LARGE}",),
    "a path beyond the limit": (f"GET /v1/boxes/{LARGE}{LARGE}",),
    "a path of many parts": ("GET /v1" + "/x" * 30_000,),
    "a query": (f"GET /v1/boxes?pageToken={LARGE}",),
    "a query of many fields": ("DELETE /v1/boxes/nosuch?" + "a=1&" * 15_000,),
    "a method": (f"{LARGE} /v1/boxes",),
    "a header": ("DELETE /v1/boxes/nosuch", f"X-Large: {LARGE}{LARGE}"),
    "many headers": ("DELETE /v1/boxes/nosuch", *["X-Many: 1"] * 8000),
    "a request id": ("DELETE /v1/boxes/nosuch", f"X-Request-Id: {LARGE}"),
    "an idempotency key": ("DELETE /v1/boxes/nosuch", f"Idempotency-Key: {LARGE}"),
    "an origin": ("DELETE /v1/boxes/nosuch", f"Origin: https://{LARGE}"),
    "a content type": ("POST /v1/boxes", f"Content-Type: {LARGE}", "Content-Length: 0"),
    "a forwarded address": ("DELETE /v1/boxes/nosuch", "X-Forwarded-For: " + "1.1.1.1, " * 6000),
    "a content length": ("POST /v1/boxes", "Content-Type: application/json", f"Content-Length: {'9' * 5000}"),
}


@pytest.mark.parametrize("what", OVERSIZED_HEADS)
def test_an_oversized_head_is_refused(cluster: Cluster, what: str) -> None:
    assert cluster.coordinator
    with unharmed(cluster, cluster.coordinator):
        [status] = exchange(cluster.port, head(cluster, *OVERSIZED_HEADS[what]))
        assert 400 <= status < 500


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


JSON = "Content-Type: application/json"
OVERSIZED_JSON: dict[str, bytes] = {
    "a body": b'{"image": "' + b"x" * 3 * MIB + b'"}',
    "an image name": b'{"image": "' + b"x" * MIB + b'"}',
    "many labels": json.dumps({"image": "a", "labels": {f"l{number}": "" for number in range(50_000)}}).encode(),
    "many variables": json.dumps({"image": "a", "env": {f"V{number}": "" for number in range(100_000)}}).encode(),
    "many arguments": json.dumps({"image": "a", "cmd": ["x"] * 300_000}).encode(),
    "a deep body": b'{"image": ' + b"[" * 500_000 + b"]" * 500_000 + b"}",
    "a deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a number": b'{"image": "a", "cpus": ' + b"9" * MIB + b"}",
    "an exponent": b'{"image": "a", "memory_mib": 1e999999999}',
    "the same field again and again": b"{" + b'"image": 1,' * 100_000 + b'"image": 2}',
}


@pytest.mark.parametrize("what", OVERSIZED_JSON)
def test_an_oversized_json_body_is_refused(cluster: Cluster, what: str) -> None:
    assert cluster.coordinator
    body = OVERSIZED_JSON[what]
    with unharmed(cluster, cluster.coordinator):
        for framing, sent in ((f"Content-Length: {len(body)}", body), ("Transfer-Encoding: chunked", _chunked(body))):
            end = b"" if framing.startswith("Content") else b"0\r\n\r\n"
            [status] = exchange(cluster.port, head(cluster, "POST /v1/boxes", JSON, framing), sent, end)
            assert 400 <= status < 500


def test_oversized_uploads_are_refused(cluster: Cluster, box: str) -> None:
    assert cluster.coordinator
    with unharmed(cluster, cluster.coordinator, *cluster.workers):
        for line, kind in (
            (f"PUT /v1/boxes/{box}/files?path=/tmp", "application/x-tar"),
            ("POST /v1/boxes/import", "application/octet-stream"),
        ):
            for content in (b"\0" * 64 * MIB, b"x" * 64 * MIB):
                length = f"Content-Length: {len(content)}"
                statuses = exchange(cluster.port, head(cluster, line, f"Content-Type: {kind}", length), content)
                # An archive of zeros is one without entries. Where the refusal came first, its answer may be lost.
                assert not [status for status in statuses if status >= 500], (line, statuses)
        form = b"grant_type=client_credentials&client_secret=" + b"x" * MIB
        form_head = head(
            cluster,
            "POST /v1/oauth/tokens",
            "Content-Type: application/x-www-form-urlencoded",
            f"Content-Length: {len(form)}",
        )
        [status] = exchange(cluster.port, form_head, form)
        assert status == 413


# ---- smuggling ----

BODY = b'{"image": 3}'
AMBIGUOUS: dict[str, tuple[tuple[str, ...], bytes]] = {
    "a length and chunks": (("Content-Length: 5", "Transfer-Encoding: chunked"), b"0\r\n\r\n"),
    "chunks and a length": (("Transfer-Encoding: chunked", "Content-Length: 5"), b"0\r\n\r\n"),
    "two lengths": (("Content-Length: 0", "Content-Length: 12"), BODY),
    "a list of lengths": (("Content-Length: 0, 12",), BODY),
    "a length with a sign": (("Content-Length: +12",), BODY),
    "a negative length": (("Content-Length: -12",), BODY),
    "a hexadecimal length": (("Content-Length: 0xc",), BODY),
    "a length with a blank": (("Content-Length: 1 2",), BODY),
    "a length of other digits": (("Content-Length: \xb2",), BODY),
    "an unknown coding": (("Transfer-Encoding: xchunked",), b"0\r\n\r\n"),
    "two codings": (("Transfer-Encoding: chunked, identity",), b"0\r\n\r\n"),
    "the same coding twice": (("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), b"0\r\n\r\n"),
    "another coding in another line": (("Transfer-Encoding: chunked", "Transfer-Encoding: x"), b"0\r\n\r\n"),
    "a blank before the colon": (("Transfer-Encoding : chunked",), b"0\r\n\r\n"),
    "a folded header": (("X: y", " Transfer-Encoding: chunked"), b"0\r\n\r\n"),
    "a line that is no header": (("Transfer-Encoding chunked",), b"0\r\n\r\n"),
    "a NUL in a header": (("X: a\0b",), b""),
    "a line break in a header": (("X: a\rContent-Length: 12",), BODY),
    "a chunk's size with a sign": (("Transfer-Encoding: chunked",), b"+c\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk's size with 0x": (("Transfer-Encoding: chunked",), b"0xc\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk's size of 40 digits": (("Transfer-Encoding: chunked",), b"0" * 40 + b"c\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk that is too long": (("Transfer-Encoding: chunked",), b"3\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk without an end": (("Transfer-Encoding: chunked",), b"c\r\n" + BODY + b"XX0\r\n\r\n"),
}


@pytest.mark.parametrize("what", AMBIGUOUS)
def test_a_request_in_an_ambiguous_body_is_not_carried_out(cluster: Cluster, what: str) -> None:
    """Whatever a proxy takes for the end of the request, nothing behind it is a request of its own."""
    assert cluster.coordinator
    headers, body = AMBIGUOUS[what]
    name = f"smuggled-{list(AMBIGUOUS).index(what)}"
    smuggled = head(cluster, f"DELETE /v1/boxes/{name}")
    with unharmed(cluster, cluster.coordinator):
        statuses = exchange(cluster.port, head(cluster, "POST /v1/boxes", JSON, *headers), body, smuggled)
    assert statuses
    assert all(400 <= status < 500 for status in statuses)
    assert name not in cluster.coordinator.log.read_text()


def test_chunks_of_an_old_version_are_refused(cluster: Cluster) -> None:
    old = head(cluster, "POST /v1/boxes", JSON, "Transfer-Encoding: chunked").replace(b"HTTP/1.1", b"HTTP/1.0")
    assert exchange(cluster.port, old, b"0\r\n\r\n", head(cluster, "DELETE /v1/boxes/nosuch")) == [400]


def test_a_broken_request_behind_a_good_one_is_answered_too(cluster: Cluster) -> None:
    assert exchange(cluster.port, head(cluster, "GET /v1/health"), b"\0 \r\n\r\n") == [200, 400]
    chunked = head(cluster, "POST /v1/boxes", "Content-Type: text/plain", "Transfer-Encoding: chunked")
    assert exchange(cluster.port, chunked, b"zzz\r\n") in ([415], [400])  # whichever is seen first, and not both


def test_a_body_larger_than_any_is_refused_as_it_comes(cluster: Cluster) -> None:
    declared = head(cluster, "POST /v1/boxes", JSON, f"Content-Length: {2**63}")
    with connection(cluster.port) as sock:
        sock.sendall(declared + b" " * 2 * MIB + b" ")
        assert sock.recv(12) == b"HTTP/1.1 413"


def test_what_follows_a_whole_request_is_a_request_of_its_own(cluster: Cluster) -> None:
    """The test above would pass where no connection were used twice."""
    one = head(cluster, "POST /v1/boxes", JSON, f"Content-Length: {len(BODY)}") + BODY
    assert exchange(cluster.port, one, head(cluster, "DELETE /v1/boxes/nosuch")) == [400, 404]


# ---- WebSockets ----

FRAME = struct.Struct("!BB")


def handshake(cluster: Cluster, path: str, *headers: str) -> socket.socket:
    sock = connection(cluster.port)
    key = base64.b64encode(os.urandom(16)).decode()
    more = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}")
    sock.sendall(head(cluster, f"GET {path}", *more, *headers))
    return sock


def attach(cluster: Cluster, box: str) -> socket.socket:
    """A socket that is attached to a command that goes on."""
    execution = execute(cluster, box, "sleep 1000")
    sock = handshake(cluster, f"/v1/boxes/{box}/executions/{execution}/attach")
    assert sock.recv(12) == b"HTTP/1.1 101"
    return sock


def frame(opcode: int, data: bytes, *, fin: bool = True, masked: bool = True) -> bytes:
    """A frame; the mask is zero, which leaves the data as it is."""
    size = len(data)
    short = size if size < 126 else 126 if size < 65536 else 127
    length = b"" if size < 126 else struct.pack("!H" if size < 65536 else "!Q", size)
    mask = b"\0" * 4 if masked else b""
    return FRAME.pack(opcode | (0x80 if fin else 0), short | (0x80 if masked else 0)) + length + mask + data


def flooded(sock: socket.socket, data: bytes, times: int) -> None:
    """Send, and read nothing, until all is sent or the server has ended the connection or takes no more."""
    sock.settimeout(2.0)
    with contextlib.suppress(OSError):
        for _ in range(times):
            sock.sendall(data)


FLOODS: dict[str, tuple[bytes, int]] = {
    "pings": (frame(9, b"x" * 125) * 100, 1000),
    "pongs": (frame(10, b"x" * 8) * 100, 1000),
    "empty frames": (frame(2, b"") * 1000, 100),
    "fragments of a text without end": (frame(1, b"a", fin=False) + frame(0, b"a", fin=False) * 1000, 1),
    "fragments without a beginning": (frame(0, b"a") * 100, 10),
    "a text beyond the limit": (frame(1, b"x" * 2 * MIB), 1),
    "texts that are no control": (frame(1, b"{}") * 100, 100),
    "texts that are no JSON": (frame(1, b"[" * 60_000), 20),
    "text that is no UTF-8": (frame(1, b"\xff\xfe"), 1),
    "frames without a mask": (frame(2, b"x", masked=False) * 100, 1),
    "a frame of 2⁶² bytes": (b"\x82\xff" + struct.pack("!Q", 2**62) + b"\0" * 4 + b"x" * MIB, 20),
    "reserved opcodes": (frame(3, b"x") * 10, 1),
    "a large ping": (frame(9, b"x" * 200), 1),
    "closing frames": (frame(8, struct.pack("!H", 1000)) * 1000, 1),
    "what is no frame": (os.urandom(65536), 10),
}


@pytest.mark.parametrize("what", FLOODS)
def test_a_flood_over_a_websocket_harms_nobody(cluster: Cluster, box: str, what: str) -> None:
    assert cluster.coordinator
    data, times = FLOODS[what]
    with unharmed(cluster, cluster.coordinator, *cluster.workers) as honest:
        sockets = [attach(cluster, box) for _ in range(3)]
        in_threads(3, lambda number: flooded(sockets[number], data, times))
        honest.is_served()
        for sock in sockets:
            sock.close()
        for execution in cluster.http("GET", f"/v1/boxes/{box}/executions")[2].get("executions", []):
            cluster.http("DELETE", f"/v1/boxes/{box}/executions/{execution['execution_id']}")


def test_a_flood_of_handshakes_harms_nobody(cluster: Cluster, box: str) -> None:
    assert cluster.coordinator
    path = f"/v1/boxes/{box}/executions/nosuch/attach"

    def shake(number: int) -> bytes:
        with handshake(cluster, path, *(["Connection: close"] if number % 2 else [])) as sock:
            return sock.recv(12)

    with unharmed(cluster, cluster.coordinator) as honest:
        mine, cluster.api_key = cluster.api_key, ""
        refused = [in_threads(20, shake) for _ in range(10)]
        cluster.api_key = mine
        unknown = in_threads(50, shake)
        honest.is_served()
    assert {status for statuses in refused for status in statuses} == {b"HTTP/1.1 401"}
    assert {int(status[9:]) for status in unknown} <= {404, 409, 426}


# ---- keys ----


def test_1_000_wrong_keys_open_nothing_slow_nobody_else_and_fill_no_audit(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cluster.coordinator
    good = cluster.api_key
    assert good

    def guess(thread: int) -> list[int]:
        statuses = []
        for number in range(WRONG_KEYS // 50):
            guess = good[: -6 - number % 30] + f"{thread:03}{number:03}" + good[len(good) - number % 30 :]
            headers = {"Authorization": f"Bearer {guess}"}
            statuses.append(call(cluster.port, "GET", "/v1/boxes", headers=headers, timeout=2 * PATIENCE)[0])
        return statuses

    with unharmed(cluster, cluster.coordinator) as honest:
        found = Counter(status for statuses in in_threads(50, guess) for status in statuses)
        honest.is_served()
    assert set(found) <= {401, 429}
    assert sum(found.values()) == WRONG_KEYS

    def audited(*flags: str) -> list[Any]:
        capsys.readouterr()
        assert main.main(["audit", "--database", cluster.database, "--format", "json", "--limit", "10000", *flags]) == 0
        return list(json.loads(capsys.readouterr().out))

    wait_until(lambda: bool(audited("--action", "gap")), "what is missing is counted")
    assert len(audited("--key", "", "--status", "4xx")) < WRONG_KEYS  # with those of the tests above
