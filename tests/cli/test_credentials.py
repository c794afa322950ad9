"""The API key of the commands: where it may come from, and who does not see it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import Cluster, call, wait_until
from support.keys import KEY

from boxlite_server import ids
from boxlite_server.cli import main


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, docker_host="unix:///nowhere")
    yield cluster
    cluster.close()


def shown_by(process: int) -> bytes:
    """What other processes of the host can read of a process."""
    return b"".join(Path(f"/proc/{process}/{name}").read_bytes() for name in ("cmdline", "environ"))


def statuses(cluster: Cluster) -> list[int]:
    bearers = ({}, {"Authorization": f"Bearer {KEY}"})
    return [call(cluster.port, "GET", "/v1/boxes", headers=headers)[0] for headers in bearers]


@pytest.mark.parametrize("way", ["flag", "flag with =", "variable", "file"])
def test_a_key_opens_and_is_not_shown_whatever_way_it_comes(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    flags = {
        "flag": ["--api-key", KEY],
        "flag with =": [f"--api-key={KEY}"],
        "variable": [],
        "file": ["--api-key-file", str(tmp_path / "key")],
    }
    if way == "variable":
        env = cluster._env()
        monkeypatch.setattr(cluster, "_env", lambda: {**env, "BOXLITE_API_KEY": KEY})
    coordinator = cluster.start_coordinator(*flags[way])
    assert statuses(cluster) == [401, 200]
    assert KEY.encode() not in shown_by(coordinator.pid)
    assert str(cluster.port).encode() in shown_by(coordinator.pid)  # the other arguments are there


def test_no_process_of_a_fleet_shows_the_key(
    new_cluster, test_image: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor the holder, nor what runs in a box."""
    key = ids.secret()  # that no other run of the tests has
    cluster = new_cluster(api_key=key)
    cluster.start_coordinator()
    env = cluster._env()
    monkeypatch.setattr(cluster, "_env", lambda: {**env, "BOXLITE_API_KEY": key})
    worker = cluster.start_worker()
    body = {"image": test_image, "name": "web", "start": True}
    assert cluster.http("POST", "/v1/boxes", body)[0] == 201
    started = cluster.http("POST", "/v1/boxes/web/exec", {"command": "sleep", "args": ["60"]})
    assert started[0] == 201, started
    shown = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                shown[entry.name] = shown_by(int(entry.name))
            except OSError:
                continue  # it has ended
    assert str(worker.pid) in shown
    assert any(str(worker.home).encode() in text and b"holder" in text for text in shown.values())
    assert not [text for text in shown.values() if key.encode() in text]
    assert cluster.http("DELETE", "/v1/boxes/web?force=true")[0] in (200, 204)


@pytest.mark.parametrize("key", ["", "short", "fifteen-letters", "with blanks in the middle", "é" * 20])
def test_a_key_that_is_none_or_can_be_guessed_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    assert main.main(["coordinator", "--database", str(tmp_path / "c.db"), "--port", "0", "--api-key", key]) == 1
    said = capsys.readouterr().err
    assert "openssl rand -hex 32" in said or "visible ASCII" in said
    assert not key or f"'{key}'" not in said


def test_a_key_file_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "nosuch"
    assert main.main(["workers", "--api-key-file", str(missing)]) == 1
    assert str(missing) in capsys.readouterr().err


def test_a_command_of_the_operator_takes_the_key_from_a_file(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_text(KEY)
    cluster.start_coordinator("--api-key-file", str(tmp_path / "key"))
    wait_until(lambda: statuses(cluster) == [401, 200], "the key opens")
    assert main.main(["workers", "--coordinator", cluster.url, "--api-key-file", str(tmp_path / "key")]) == 0
    assert "NAME" in capsys.readouterr().out
