"""Single files and directories over HTTP: parts, conditions, and what a box may say of its files."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from support.boxes import create, start
from support.cluster import Cluster
from support.declared import undeclared

OCTETS = {"Content-Type": "application/octet-stream"}
MIB = 1 << 20


class Files:
    """The files of a box that runs."""

    def __init__(self, cluster: Cluster, box: str) -> None:
        self.cluster = cluster
        self.box = box

    def url(self, what: str, path: str, **query: Any) -> str:
        return f"/v1/boxes/{self.box}/files/{what}?{urlencode({'path': path, **query})}"

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], Any]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        status, answered, body = self.cluster.http(method, self.url("content", path), headers=named)
        assert not undeclared(method, self.url("content", path), status, answered)
        return status, answered, body

    def put(self, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, str], Any]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.cluster.http("PUT", self.url("content", path), body, headers={**OCTETS, **named})

    def etag(self, path: str, body: bytes) -> str:
        """Write a file, and return its ETag."""
        status, headers, answer = self.put(path, body)
        assert status == 204, answer
        return headers["etag"]

    def sh(self, script: str) -> str:
        body = {"command": "sh", "args": ["-c", script]}
        status, _, answer = self.cluster.http("POST", f"/v1/boxes/{self.box}/run", body)
        assert (status, answer["exit_code"]) == (200, 0), answer
        return str(answer["stdout"])


@pytest.fixture(scope="module")
def files(cluster: Cluster, test_image: str) -> Iterator[Files]:
    box = create(cluster, image=test_image)
    start(cluster, box)
    yield Files(cluster, box)
    assert cluster.http("DELETE", f"/v1/boxes/{box}?force=true")[0] == 204


def test_a_file_is_written_and_read_as_it_is(files: Files) -> None:
    etag = files.etag("/srv/new/a b.txt", b"hello")
    status, headers, body = files.get("/srv/new/a b.txt")
    assert (status, body) == (200, b"hello")
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-length"] == "5"
    assert (headers["etag"], headers["accept-ranges"]) == (etag, "bytes")
    assert headers["content-disposition"] == "attachment; filename*=UTF-8''a%20b.txt"
    assert headers["x-content-type-options"] == "nosniff"
    status, headers, body = files.get("/srv/new/a b.txt", "HEAD")
    assert (status, headers["content-length"], headers["etag"], body) == (200, "5", etag, b"")
    assert files.sh("cat '/srv/new/a b.txt'") == "hello"


@pytest.mark.parametrize(
    ("asked", "status", "content", "part"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=7-99", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("bytes=5-3", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
def test_a_part_of_a_file_is_read(files: Files, asked: str, status: int, content: bytes, part: str | None) -> None:
    files.etag("/srv/ranges", b"0123456789")
    found, headers, body = files.get("/srv/ranges", Range=asked)
    assert (found, headers.get("content-range")) == (status, part)
    if content is not None:
        assert body == content


def test_a_part_counts_only_for_the_file_that_it_is_of(files: Files) -> None:
    etag = files.etag("/srv/f", b"first")
    assert files.get("/srv/f", Range="bytes=0-1", If_Range=etag)[0] == 206
    files.etag("/srv/f", b"second")
    assert files.get("/srv/f", Range="bytes=0-1", If_Range=etag)[0::2] == (200, b"second")


def test_a_file_that_the_client_has_is_not_sent_again(files: Files) -> None:
    etag = files.etag("/srv/g", b"1")
    for known in (etag, f'"other", W/{etag}', "*"):
        status, headers, body = files.get("/srv/g", If_None_Match=known)
        assert (status, headers["etag"], body) == (304, etag, b"")
    assert files.get("/srv/g", If_None_Match='"other"')[0] == 200
    assert files.get("/srv/g", If_Match=etag)[0] == 200
    for condition in ('"other"', f"W/{etag}"):
        assert files.get("/srv/g", If_Match=condition)[0] == 412
    files.sh("echo more >> /srv/g")
    assert files.get("/srv/g", If_None_Match=etag)[0] == 200


def test_a_changed_file_is_not_written_over(files: Files) -> None:
    etag = files.etag("/srv/h", b"1")
    files.sh("echo 2 > /srv/h")
    for condition in (etag, f"W/{etag}", "not a tag"):
        status, _, answer = files.put("/srv/h", b"3", If_Match=condition)
        assert (status, answer["error"]["code"]) == (412, "invalid_state")
    assert files.put("/srv/h", b"3", If_None_Match="*")[0] == 412
    assert files.put("/srv/nosuch", b"3", If_Match="*")[0] == 412
    assert files.get("/srv/h")[2] == b"2\n"
    assert files.get("/srv/nosuch")[0] == 404
    assert files.put("/srv/h", b"3", If_None_Match='"x"')[2]["error"]["code"] == "unsupported"
    assert files.put("/srv/h", b"3", If_Match=files.get("/srv/h")[1]["etag"])[0] == 204


def test_a_request_with_its_idempotency_key_writes_once(files: Files) -> None:
    first = files.put("/srv/once", b"1", Idempotency_Key="single-file")
    files.sh("echo by the box > /srv/once")
    again = files.put("/srv/once", b"1", Idempotency_Key="single-file")
    assert (first[0], again[0], again[1]["etag"]) == (204, 204, first[1]["etag"])
    assert files.get("/srv/once")[2] == b"by the box\n"


def test_modes_are_kept_or_given(files: Files) -> None:
    path = f"/v1/boxes/{files.box}/files/content?path=/srv/run&mode=0755"
    assert files.cluster.http("PUT", path, b"#!/bin/sh\necho yes\n", headers=OCTETS)[0] == 204
    assert files.sh("/srv/run") == "yes\n"
    files.etag("/srv/run", b"#!/bin/sh\necho no\n")
    assert files.sh("/srv/run") == "no\n"
    wrong = path.replace("0755", "rwx")
    assert files.cluster.http("PUT", wrong, b"", headers=OCTETS)[0] == 400


def test_what_is_no_file_is_refused(files: Files) -> None:
    assert files.get("/etc")[0] == files.put("/etc", b"")[0] == 400
    assert files.get("/nosuch")[0] == 404
    assert files.get("/proc/self/environ")[0] == files.put("/proc/f", b"")[0] == 400
    files.sh("ln -sf /proc/self/environ /srv/proc; ln -sfn loop /srv/loop; mkfifo /srv/pipe")
    assert (files.get("/srv/proc")[0], files.get("/srv/loop")[0], files.get("/srv/pipe")[0]) == (400, 409, 400)
    assert files.get("../../srv/../../../etc/hostname")[0] == 200


def test_a_body_that_breaks_off_changes_nothing(files: Files) -> None:
    files.etag("/srv/whole", b"before")
    connection = http.client.HTTPConnection("127.0.0.1", files.cluster.port, timeout=60)
    connection.putrequest("PUT", files.url("content", "/srv/whole"))
    for name, value in {**OCTETS, "Content-Length": str(4 * MIB)}.items():
        connection.putheader(name, value)
    connection.endheaders(bytes(2 * MIB))
    connection.close()
    assert files.get("/srv/whole")[2] == b"before"


def test_a_large_file_without_a_length_is_written_while_readers_see_all_or_nothing(files: Files) -> None:
    old, new = b"a" * 3 * MIB, b"b" * 3 * MIB
    files.etag("/srv/large", old)
    seen: list[bytes] = []
    reader = threading.Thread(target=lambda: seen.extend(files.get("/srv/large")[2] for _ in range(5)))
    reader.start()
    connection = http.client.HTTPConnection("127.0.0.1", files.cluster.port, timeout=60)
    pieces = (new[start : start + 65536] for start in range(0, len(new), 65536))
    connection.request("PUT", files.url("content", "/srv/large"), pieces, OCTETS, encode_chunked=True)
    assert connection.getresponse().status == 204
    reader.join()
    assert {*seen} <= {old, new}
    assert files.get("/srv/large", Range=f"bytes={2 * MIB}-{2 * MIB + 9}")[2] == b"b" * 10


def test_a_directory_is_listed_page_by_page(files: Files) -> None:
    files.sh("mkdir /srv/dir; cd /srv/dir; touch f1 f2; chmod 600 f2; ln -s f1 l; mkdir d; touch d/x")
    status, _, page = files.cluster.http("GET", files.url("list", "/srv/dir", page_size=2))
    assert status == 200
    assert [(entry["name"], entry["type"]) for entry in page["entries"]] == [("d", "directory"), ("f1", "file")]
    rest = files.cluster.http("GET", files.url("list", "/srv/dir", page_token=page["next_page_token"]))[2]
    assert [(entry["name"], entry["mode"], entry["link_target"]) for entry in rest["entries"]] == [
        ("f2", "0600", None),
        ("l", "0777", "f1"),
    ]
    assert rest["next_page_token"] is None
    assert files.cluster.http("GET", files.url("list", "/srv/dir", page_token="?"))[0] == 400
    assert files.cluster.http("GET", files.url("list", "/srv/dir/f1"))[0] == 400
    assert files.cluster.http("GET", files.url("list", "/srv/nosuch"))[0] == 404
    assert files.cluster.http("GET", files.url("list", "/proc"))[0] == 400


def test_a_path_tells_what_it_is(files: Files) -> None:
    etag = files.etag("/srv/stat", b"12345")
    status, _, found = files.cluster.http("GET", files.url("stat", "/srv/stat"))
    assert status == 200
    modified = found.pop("modified_at")
    assert modified.endswith(".000Z")
    assert found == {
        "name": "stat",
        "type": "file",
        "size": 5,
        "mode": "0644",
        "link_target": None,
        "etag": etag,
    }
    root = files.cluster.http("GET", files.url("stat", "/"))[2]
    assert (root["type"], root["etag"]) == ("directory", None)
    files.sh("chmod 4755 /srv/stat")
    assert files.cluster.http("GET", files.url("stat", "/srv/stat"))[2]["mode"] == "4755"
    assert files.cluster.http("GET", files.url("stat", "/srv/nosuch"))[0] == 404


def test_times_and_names_that_a_box_makes_up_are_shown_as_far_as_they_can_be(files: Files) -> None:
    files.sh(
        "mkdir /srv/odd; cd /srv/odd; touch \"$(printf '\\377')\" \"$(printf 'a\\nb')\"; touch -d @99999999999 late"
    )
    entries = files.cluster.http("GET", files.url("list", "/srv/odd"))[2]["entries"]
    assert {entry["name"] for entry in entries} == {"\ufffd", "a\nb", "late"}


def test_a_box_that_does_not_run_has_the_same_files(files: Files) -> None:
    etag = files.etag("/srv/rest/f", b"rest")
    listed = files.cluster.http("GET", files.url("list", "/srv/rest"))[2]
    assert files.cluster.http("POST", f"/v1/boxes/{files.box}/stop")[0] == 200
    try:
        assert files.get("/srv/rest/f", If_None_Match=etag)[0] == 304
        assert files.get("/srv/rest/f", Range="bytes=1-2")[0::2] == (206, b"es")
        assert files.cluster.http("GET", files.url("list", "/srv/rest"))[2] == listed
        assert files.put("/srv/rest/f", b"new", If_Match=etag)[0] == 204
    finally:
        start(files.cluster, files.box)
    assert files.get("/srv/rest/f")[2] == b"new"


def test_who_may_not_execute_sees_no_files(new_cluster: Any, test_image: str) -> None:
    cluster: Cluster = new_cluster()
    cluster.start_with_keys()
    cluster.api_key = cluster.new_key("--prefix", "acme")
    box = create(cluster, image=test_image)
    reader = {"Authorization": f"Bearer {cluster.new_key('--prefix', 'acme', '--scope', 'box:read')}"}
    other = {"Authorization": f"Bearer {cluster.new_key('--prefix', 'other')}"}
    for what in ("content", "stat", "list"):
        path = f"/v1/acme/boxes/{box}/files/{what}?path={quote('/etc')}"
        assert cluster.http("GET", path, headers=reader)[0] == 403
        assert cluster.http("GET", path, headers=other)[0] == 404
