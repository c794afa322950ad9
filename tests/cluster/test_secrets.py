"""Secrets that are planted wherever a client can put one, and looked for in all that a cluster leaves behind.

`Cluster.close` does the same, with fewer secrets, at the end of every other test.
"""

from __future__ import annotations

import io
import tarfile
from contextlib import suppress
from typing import Any

import pytest
from support.attach import attached
from support.boxes import create, start
from support.cluster import Cluster, call
from support.secrets import Search
from websockets.exceptions import WebSocketException

from boxlite_server import ids

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def cluster(new_shared_cluster: Any, test_image: str) -> Cluster:
    cluster: Cluster = new_shared_cluster()
    cluster.start_with_keys()
    cluster.api_key = cluster.new_key("--prefix", "acme")
    return cluster


class Planter:
    """Plants secrets, and keeps what the answers of a cluster show of them."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.secrets: list[str] = []
        self.answers: list[bytes] = []

    def secret(self) -> str:
        self.secrets.append(f"planted-{ids.secret()}")
        return self.secrets[-1]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Send a request. What it is answered is kept if it is an error."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        status, more, answer = self.cluster.http(method, path, body, headers=sent)
        if status >= 400:
            self.answers.append(f"{more} {answer}".encode())
        return status, answer


def test_no_planted_secret_is_in_logs_errors_the_audit_the_database_or_lists_of_processes(cluster: Cluster) -> None:
    planter = Planter(cluster)
    box = in_boxes(planter)
    in_commands(planter, box)
    in_files(planter, box)
    in_credentials(planter)
    assert planter.ask("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204
    search = Search(cluster, *planter.secrets)
    assert search.found() == []
    assert not [answer for answer in planter.answers if search.shows(answer)]
    assert len(planter.answers) > 10


def in_boxes(planter: Planter) -> str:
    """A box that lives, one that cannot be made, one that cannot start, and one whose variables are refused."""
    env = {"TOKEN": planter.secret()}
    box = create(planter.cluster, env=env, name="web", cmd=["sleep", "1000"])
    start(planter.cluster, box)
    again = {"image": "alpine:latest", "env": env, "memory_mib": 128}
    for _ in range(2):
        assert planter.ask("POST", "/v1/boxes", again, Idempotency_Key="once")[0] == 201
    for fields in (
        {"name": "web"},
        {"image": "127.0.0.1:9/nosuch:latest"},
        {"cmd": ["/nosuch"], "start": True},
        {"env": {"A=B": planter.secret()}},
        {"env": {"A": planter.secret() + "\0"}},
        {"env": {"A": [planter.secret()]}},
        {"env": planter.secret()},
        {"memory_mib": 10**9},
        {"user": "nosuch", "start": True},
        {"volumes": [{"host_path": "/etc", "guest_path": "/x"}]},
    ):
        planter.ask("POST", "/v1/boxes", {"image": "alpine:latest", "env": {"TOKEN": planter.secret()}, **fields})
    return box


def in_commands(planter: Planter, box: str) -> None:
    """Environment, input, output and arguments, of commands that succeed and that fail."""
    for fields in (
        {"command": "cat", "stdin": planter.secret()},
        {"command": "printenv"},
        {"command": "echo", "args": [planter.secret()]},
        {"command": "/nosuch"},
        {"command": "sleep", "args": ["100"], "timeout_seconds": 0.1},
        {"command": "true", "user": "nosuch"},
        {"command": "true", "working_dir": "/nosuch"},
        {"command": "true", "env": {"A=B": planter.secret()}},
    ):
        for path in ("run", "exec"):
            planter.ask("POST", f"/v1/boxes/{box}/{path}", {"env": {"TOKEN": planter.secret()}, **fields})
    with (
        suppress(WebSocketException),
        attached(planter.cluster, f"{box}/exec/tty?command=sh&args=-c&args={planter.secret()}", channels=False) as one,
    ):
        one.send(planter.secret().encode())
    with suppress(WebSocketException), attached(planter.cluster, f"{box}/exec/tty?cols={planter.secret()}"):
        pass


def in_files(planter: Planter, box: str) -> None:
    """Contents that are taken, and that are no archive."""
    content = planter.secret().encode()
    with io.BytesIO() as archive:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            entry = tarfile.TarInfo("file")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        whole = archive.getvalue()
    tar_type = {"Content_Type": "application/x-tar"}
    assert planter.ask("PUT", f"/v1/boxes/{box}/files?path=/tmp", whole, **tar_type)[0] == 204
    planter.ask("PUT", f"/v1/boxes/{box}/files?path=/proc/1", whole, **tar_type)
    planter.ask("PUT", f"/v1/boxes/{box}/files?path=/tmp", content * 100, **tar_type)
    planter.ask("POST", "/v1/boxes/import", content * 100, Content_Type="application/octet-stream")


def in_credentials(planter: Planter) -> None:
    """Keys and tokens where they belong, and where they do not."""
    cluster = planter.cluster
    key = cluster.api_key
    assert key
    form = f"grant_type=client_credentials&client_id=me&client_secret={key}".encode()
    status, _, token = call(cluster.port, "POST", "/v1/oauth/tokens", form, headers=FORM)
    assert status == 200
    headers = {"Authorization": f"Bearer {token['access_token']}"}
    assert call(cluster.port, "GET", "/v1/boxes", headers=headers)[0] == 200
    wrong = key[:-5] + "wrong"
    for path in ("/v1/boxes", f"/v1/{key}/boxes", f"/v1/boxes/{key}", f"/v1/boxes?pageToken={key}", f"/{key}"):
        for method in ("GET", "POST", "DELETE"):
            planter.ask(method, path, X_Request_Id=key)
            planter.ask(method, path, Authorization=f"Bearer {wrong}")
    planter.ask("POST", "/v1/boxes", {"image": key, "name": wrong})
    planter.ask("POST", "/v1/boxes", {"image": 3, "token": token["access_token"]}, X_Request_Id=token["access_token"])
    planter.ask("GET", "/v1/boxes", Authorization=f"Basic {planter.secret()}")
    planter.ask("GET", "/v1/boxes", Authorization=f"Bearer {planter.secret()}")
    call(cluster.port, "POST", "/v1/oauth/tokens", form[:-5] + b"wrong", headers=FORM)


def test_the_search_finds_what_is_there(cluster: Cluster) -> None:
    """A search that finds nothing anywhere would pass too."""
    known = ids.new_id()
    cluster.http("DELETE", f"/v1/boxes/{known}")
    [worker] = cluster.workers
    places = Search(cluster, known, str(worker.home)).found()
    assert any(known in place and place.startswith(str(cluster.directory)) for place in places)
    assert any(str(worker.home) in place and place.startswith("process ") for place in places)
    assert Search(cluster, "acme").found()
