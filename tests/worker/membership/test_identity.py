from __future__ import annotations

import json
import random
import stat
from pathlib import Path

import pytest

from boxlite_server.errors import BoxliteError, UpstreamUnavailableError
from boxlite_server.worker.membership.identity import FILE_NAME, Identity, locked_home
from boxlite_server.worker.runtime import Owner


def load(home: Path, name: str | None = None) -> Identity:
    return Identity.load(home, name, random.Random(1))


def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    first = load(tmp_path)
    first.join("cluster")
    assert load(tmp_path) == first
    assert first.secret != first.id


def test_the_file_is_for_its_owner_only_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    load(tmp_path)
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_names(tmp_path: Path) -> None:
    first = load(tmp_path)
    assert not first.name_given
    given = load(tmp_path, "my-worker")
    assert (given.id, given.name, given.name_given) == (first.id, "my-worker", True)
    assert load(tmp_path) == given


def test_rename(tmp_path: Path) -> None:
    identity = load(tmp_path)
    former = identity.name
    identity.rename(random.Random(2))
    assert identity.name != former
    assert load(tmp_path) == identity


def test_owner_is_known_after_the_first_registration(tmp_path: Path) -> None:
    identity = load(tmp_path)
    with pytest.raises(UpstreamUnavailableError, match="not registered"):
        identity.owner()
    identity.join("cluster")
    assert identity.owner() == Owner("cluster", identity.id)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"id": "x"}', json.dumps({"more": 1})])
def test_a_damaged_file_is_reported_and_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(BoxliteError, match="damaged"):
        load(tmp_path)
    assert (tmp_path / FILE_NAME).read_text() == content


def test_a_home_has_one_worker(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    with locked_home(home):
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        with pytest.raises(BoxliteError, match="another worker"), locked_home(home):
            pytest.fail("entered")
    with locked_home(home):
        pass


def test_a_home_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BoxliteError, match="cannot be used"), locked_home(tmp_path / "file"):
        pytest.fail("entered")


def test_a_full_disk_stops_only_those_who_have_something_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    known = Identity.load(tmp_path, None, random.Random(1))
    monkeypatch.setattr("boxlite_server.worker.membership.identity.os.fsync", full)
    assert Identity.load(tmp_path, None, random.Random(2)) == known
    with pytest.raises(BoxliteError, match=r"worker\.json cannot be written: No space left"):
        Identity.load(tmp_path, "another", random.Random(2))
    assert [path.name for path in tmp_path.iterdir()] == ["worker.json"]
