"""A cluster whose links are all encrypted: a coordinator, workers that have joined with a token, and clients."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from support import boxes
from support.attach import attached
from support.cluster import Cluster, Process, Worker, call, wait_until
from support.sdk import NEWEST, run_sdk
from support.tls_peer import serial
from support.tls_relay import tls_relay

from boxlite_server import rpc, signatures
from boxlite_server._gen import worker_pb2 as pb
from boxlite_server._gen import worker_pb2_grpc as pb_grpc
from boxlite_server.coordinator.tenants import scopes
from boxlite_server.ids import worker_host
from boxlite_server.tls import certificates

SCENARIOS = Path(__file__).parents[1] / "sdk" / "scenarios.py"
HALF_OPEN = 600  # connections; more than a coordinator has handshakes under way


@pytest.fixture(scope="module")
def cluster(new_shared_cluster: Any, test_image: str) -> Cluster:
    """A coordinator, and the worker "first", which has joined. Requests are those of a tenant who may administer."""
    cluster: Cluster = new_shared_cluster()
    cluster.use_tls()
    token = cluster.join_token()
    key = cluster.new_key("--prefix", "acme", "--scope", ",".join(scopes.CLIENT))
    cluster.start_coordinator()
    cluster.start_worker("--join", token, name="first")
    cluster.api_key = key
    return cluster


@pytest.fixture(scope="module")
def other_ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another authority, of the same name, and what it has issued."""
    directory = tmp_path_factory.mktemp("other")
    for command in (["init"], ["issue", "--coordinator", "127.0.0.1"]):
        subprocess.run([sys.executable, "-m", "boxlite_server", "certs", *command, "--dir", directory], check=True)
    return directory


@pytest.fixture
def box(cluster: Cluster) -> Any:
    box = boxes.create(cluster)
    boxes.start(cluster, box)
    yield box
    assert cluster.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204


def first(cluster: Cluster) -> Worker:
    return cluster.workers[0]


def identity(worker: Worker) -> dict[str, Any]:
    return dict(json.loads((worker.home / "worker.json").read_text()))


def joined(worker: Worker) -> certificates.Issued:
    """The certificate and the key that a worker has got."""
    both = (worker.home / "tls" / "worker.pem").read_bytes()
    return certificates.Issued(both, both)


def issued(certificate: Path) -> certificates.Issued:
    return certificates.Issued(certificate.read_bytes(), certificate.with_suffix(".key").read_bytes())


def ask(cluster: Cluster, worker: Worker, mine: certificates.Issued | None, ca: Path | None = None) -> str:
    """Ask a worker as whoever has that certificate, with the right secret; "" when it answers, else its refusal."""
    key, chain = (mine.key, mine.certificate) if mine else (None, None)
    ca = ca or cluster.certs / "ca.crt"
    credentials = grpc.ssl_channel_credentials(ca.read_bytes(), key, chain)
    name = ("grpc.ssl_target_name_override", worker_host(identity(worker)["id"]))
    with grpc.secure_channel(f"127.0.0.1:{worker.port}", credentials, options=[name]) as channel:
        return outcome(channel, worker)


def outcome(channel: grpc.Channel, worker: Worker) -> str:
    try:
        metadata = rpc.with_secret(identity(worker)["secret"])
        pb_grpc.WorkerServiceStub(channel).ListBoxes(pb.Empty(), metadata=metadata, timeout=30)
    except grpc.RpcError as exc:
        return f"{exc.code().name}: {exc.details()}"
    return ""


def boxlite(
    cluster: Cluster, *arguments: str, stdin: bytes = b"", ca: bool = True
) -> subprocess.CompletedProcess[bytes]:
    env = {"BOXLITE_API_KEY": str(cluster.api_key), "BOXLITE_REST_URL": cluster.url, "PATH": "/usr/bin:/bin"}
    env |= {"BOXLITE_CA_CERT": f"{cluster.certs}/ca.crt"} if ca else {}
    command = [sys.executable, "-m", "boxlite_server.client", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=120, check=False, env=env)


def said(done: subprocess.CompletedProcess[bytes]) -> str:
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


# ---- what works ---------------------------------------------------------------------------------------------------


def test_the_command_line_does_all_over_tls(cluster: Cluster, tmp_path: Path) -> None:
    name = said(boxlite(cluster, "create", "--name", "cli", "--memory", "128", "alpine:latest")).strip()
    try:
        said(boxlite(cluster, "start", "cli"))
        assert said(boxlite(cluster, "exec", "cli", "--", "echo", "hello")) == "hello\n"
        assert said(boxlite(cluster, "exec", "-i", "cli", "--", "cat", stdin=b"x" * 300_000)) == "x" * 300_000
        (tmp_path / "up").write_bytes(b"0123456789" * 300_000)
        said(boxlite(cluster, "cp", str(tmp_path / "up"), "cli:/tmp/up"))
        said(boxlite(cluster, "cp", "cli:/tmp/up", str(tmp_path / "down")))
        assert (tmp_path / "down").read_bytes() == (tmp_path / "up").read_bytes()
        assert "cli" in said(boxlite(cluster, "ls"))
    finally:
        said(boxlite(cluster, "rm", "--force", name))


def test_the_operators_commands_work_over_tls(cluster: Cluster) -> None:
    flags = ["--coordinator", cluster.url, "--api-key", str(cluster.api_key)]
    assert "first" in cluster.run("workers", *flags, "--ca-cert", f"{cluster.certs}/ca.crt")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        cluster.run("workers", *flags)
    assert "cannot be trusted" in failed.value.stderr


def test_the_join_token_is_in_no_list_of_processes(cluster: Cluster) -> None:
    """The worker was started with --join."""
    shown = Path(f"/proc/{first(cluster).pid}")
    assert b"--coordinator" in (shown / "cmdline").read_bytes()
    assert b"blx_" not in (shown / "cmdline").read_bytes() + (shown / "environ").read_bytes()
    abbreviated = cluster.run("worker", "--joi", "x", "--help")  # argparse takes it, so it has to be left out too
    assert "--join" in abbreviated


def test_a_client_that_does_not_know_the_authority_sends_no_key(cluster: Cluster, other_ca: Path) -> None:
    done = boxlite(cluster, "ls", ca=False)
    assert done.returncode == 1
    assert b"cannot be trusted" in done.stderr
    assert b"--ca-cert" in done.stderr
    done = boxlite(cluster, "--ca-cert", f"{other_ca}/ca.crt", "ls")
    assert (done.returncode, b"cannot be trusted" in done.stderr) == (1, True)


@pytest.mark.parametrize("scenario", ["lifecycle", "stdin", "copy_files", "main_terminal"])
def test_the_released_sdk_works_through_a_relay_that_knows_the_authority(
    cluster: Cluster, test_image: str, scenario: str
) -> None:
    """The SDK itself has its authorities built in."""
    assert cluster.tls
    with tls_relay(cluster.port, cluster.tls) as port:
        env = {"BOXLITE_REST_URL": f"http://127.0.0.1:{port}", "BOXLITE_API_KEY": str(cluster.api_key)}
        done = run_sdk(NEWEST, SCENARIOS, scenario, test_image, env=env, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_released_sdk_itself_refuses_an_authority_that_is_not_public(cluster: Cluster) -> None:
    """As docs/operations.md says. Should a release read the file, the page has to say so."""
    env = {"BOXLITE_REST_URL": cluster.url, "BOXLITE_API_KEY": str(cluster.api_key)}
    env["SSL_CERT_FILE"] = f"{cluster.certs}/ca.crt"
    done = run_sdk(NEWEST, SCENARIOS, "lifecycle", "alpine:latest", env=env, timeout=150)
    assert done.returncode != 0
    assert "NetworkError" in done.stderr


def test_workers_are_called_over_mutual_tls_alone(cluster: Cluster, other_ca: Path) -> None:
    worker = first(cluster)
    assert boxes.worker(cluster, "first")["url"] == f"https://127.0.0.1:{worker.port}"
    coordinator = issued(cluster.certs / "coordinator.crt")
    assert ask(cluster, worker, coordinator) == ""
    assert "UNAVAILABLE" in ask(cluster, worker, None)
    assert "UNAVAILABLE" in ask(cluster, worker, issued(other_ca / "coordinator.crt"))
    assert "CERTIFICATE_VERIFY_FAILED" in ask(cluster, worker, coordinator, other_ca / "ca.crt")
    with grpc.insecure_channel(f"127.0.0.1:{worker.port}") as plain:
        assert "UNAVAILABLE" in outcome(plain, worker)


def test_a_workers_certificate_calls_no_other_worker(cluster: Cluster) -> None:
    """Not even with the other worker's secret."""
    other = cluster.start_worker("--join", cluster.join_token(), name="other")
    try:
        assert "UNAVAILABLE" in ask(cluster, first(cluster), joined(other))
        assert "UNAVAILABLE" in ask(cluster, other, joined(first(cluster)))
        assert ask(cluster, other, issued(cluster.certs / "coordinator.crt")) == ""
    finally:
        other.stop()


def test_an_expired_certificate_opens_nothing(cluster: Cluster, tmp_path: Path) -> None:
    minute_ago = -1 / 1440
    expired = certificates.issue_coordinator(issued(cluster.certs / "ca.crt"), ["127.0.0.1"], minute_ago)
    assert "UNAVAILABLE" in ask(cluster, first(cluster), expired)
    (tmp_path / "c.crt").write_bytes(expired.certificate)
    (tmp_path / "c.key").write_bytes(expired.key)
    command = ["coordinator", "--port", "0", "--database", str(tmp_path / "c.db")]
    command += ["--tls-cert", str(tmp_path / "c.crt"), "--tls-key", str(tmp_path / "c.key")]
    with pytest.raises(subprocess.CalledProcessError) as failed:
        cluster.run(*command)
    assert "is valid from" in failed.value.stderr


# ---- joining ------------------------------------------------------------------------------------------------------


def test_a_worker_does_not_join_a_coordinator_of_another_authority(cluster: Cluster, other_ca: Path) -> None:
    key = cluster.new_key("--worker", "--tls-ca", f"{other_ca}/ca.crt")
    with joining(cluster, "misled", key) as worker:
        logs(worker, "is not the coordinator of the join token")
        assert not (worker.home / "tls").exists()


def test_a_revoked_token_joins_nobody_and_a_rotated_one_joins_while_its_grace_lasts(cluster: Cluster) -> None:
    token = cluster.join_token()
    key_id = token.split("_")[1]
    ca = ("--tls-ca", f"{cluster.certs}/ca.crt")
    new = cluster.run("keys", "rotate", key_id, "--grace", "1h", *ca, "--database", cluster.database)
    assert new != token
    for number, each in enumerate((token, new)):
        cluster.start_worker("--join", each, name=f"of-token-{number}").stop()
    cluster.run("keys", "revoke", key_id, "--database", cluster.database)
    with joining(cluster, "late", new) as worker:
        logs(worker, "was revoked")


def test_a_token_gets_no_certificate_in_the_name_of_another_worker(cluster: Cluster) -> None:
    worker_id = identity(first(cluster))["id"]
    headers = {"Authorization": f"Bearer {cluster.join_token().split('.')[0]}"}
    csr = certificates.request().certificate.decode()
    signature = signatures.of_certificate_request("a secret of my own", worker_id, csr)
    path = f"/v1/admin/workers/{worker_id}/certificate"
    status, _, answer = cluster.http("POST", path, {"csr": csr, "signature": signature}, headers=headers)
    assert (status, answer["error"]["code"]) == (403, "permission_denied")
    damaged = {"csr": "-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----", "signature": ""}
    assert cluster.http("POST", "/v1/admin/workers/NobodyKnows1/certificate", damaged, headers=headers)[0] == 400
    assert cluster.http("POST", path, {"csr": csr, "signature": signature})[0] == 403  # it takes the scope of workers


def test_a_worker_without_tls_is_not_registered(cluster: Cluster) -> None:
    key = cluster.join_token().split(".")[0]
    env = {"SSL_CERT_FILE": f"{cluster.certs}/ca.crt"}
    with joining(cluster, "plain", key, env) as worker:
        logs(worker, "start the worker with TLS too")


# ---- renewal ------------------------------------------------------------------------------------------------------


def test_the_coordinators_certificate_is_renewed_while_commands_run(cluster: Cluster, box: str) -> None:
    execution = boxes.execute(cluster, box, "read line; echo got $line", stdin=True)
    before = serial(cluster.port, cluster)
    with attached(cluster, f"{box}/executions/{execution}/attach") as client:
        cluster.issue("--coordinator", "127.0.0.1")
        wait_until(lambda: serial(cluster.port, cluster) != before, "the new certificate is served")
        assert boxes.status_of(cluster, box) == "running"
        other = boxes.execute(cluster, box, "echo over the new channel")  # a call to the worker
        wait_until(lambda: boxes.state(cluster, box, other)["status"] == "completed", "the command ends")
        client.send(b"it\n")
        client.until(b"got it")
    assert cluster.coordinator and cluster.coordinator.running


def test_a_certificate_without_its_key_is_not_taken(cluster: Cluster) -> None:
    certificate = cluster.certs / "coordinator.crt"
    former, before = certificate.read_bytes(), serial(cluster.port, cluster)
    certificate.write_bytes(certificates.issue_coordinator(issued(cluster.certs / "ca.crt"), ["127.0.0.1"]).certificate)
    try:
        assert cluster.coordinator
        logs(cluster.coordinator, "the former certificate stays in use", lambda: serial(cluster.port, cluster))
        assert serial(cluster.port, cluster) == before
    finally:
        certificate.write_bytes(former)


def test_a_workers_own_certificate_is_renewed_while_it_runs(cluster: Cluster) -> None:
    """One that the operator issues. The first start of such a worker fails, and tells for which id to issue it."""
    key = cluster.join_token().split(".")[0]
    flags = ["--tls-ca", f"{cluster.certs}/ca.crt", "--api-key", key, "--home", str(cluster.directory / "by-hand")]
    pair = ["--tls-cert", f"{cluster.certs}/coordinator.crt", "--tls-key", f"{cluster.certs}/coordinator.key"]
    command = ["worker", "--coordinator", cluster.url, "--port", "0", "--health-port", "0", *flags, *pair]
    with pytest.raises(subprocess.CalledProcessError) as failed:
        cluster.run(*command)
    worker_id = failed.value.stderr.split("certs issue --worker ")[1][:12]
    certificate = cluster.issue("--worker", worker_id)
    pair = ["--tls-cert", str(certificate), "--tls-key", str(certificate.with_suffix(".key"))]
    worker = cluster.start_worker(*flags[:4], *pair, home=cluster.directory / "by-hand", name="by-hand")
    try:
        before = serial(worker.port, cluster)
        cluster.issue("--worker", worker_id)
        wait_until(lambda: serial(worker.port, cluster) != before, "the new certificate is served")
        assert ask(cluster, worker, issued(cluster.certs / "coordinator.crt")) == ""
    finally:
        worker.stop()


# ---- strangers ----------------------------------------------------------------------------------------------------


def test_handshakes_that_nobody_finishes_keep_nobody_out(cluster: Cluster) -> None:
    with contextlib.ExitStack() as open_:
        for number in range(HALF_OPEN):
            stranger = open_.enter_context(socket.create_connection(("127.0.0.1", cluster.port)))
            if number % 3:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" if number % 3 == 1 else b"\x16\x03\x01")
        began = time.monotonic()
        assert cluster.http("GET", "/v1/health")[0] == 200
        assert time.monotonic() - began < 30
    assert cluster.coordinator
    assert "Traceback" not in cluster.coordinator.log.read_text()


def test_plain_http_is_not_served(cluster: Cluster) -> None:
    with pytest.raises((ConnectionError, http.client.BadStatusLine)):
        call(cluster.port, "GET", "/v1/health")


@contextlib.contextmanager
def joining(cluster: Cluster, name: str, token: str, more: dict[str, str] | None = None) -> Any:
    """A worker that will not become ready. `more`: of its environment."""
    env = {**os.environ, "DOCKER_HOST": cluster.docker_host, **(more or {})}
    home = cluster.directory / name
    command = ["worker", "--coordinator", cluster.url, "--port", "0", "--health-port", "0", "--home", str(home)]
    worker = Worker(name, cluster.directory / f"{name}.log", (0, ""), [*command, "--join", token], env)
    worker.home = home
    worker.launch()
    try:
        yield worker
    finally:
        worker.stop()


def logs(process: Process, text: str, also: Any = lambda: None) -> None:
    def has() -> bool:
        also()
        return text in process.log.read_text()

    wait_until(has, f"{process.name} logs {text!r}")
