"""The file of profiles, on its own."""

from __future__ import annotations

import multiprocessing
import stat
import tomllib
from pathlib import Path

import pytest

from boxlite_server.client import credentials
from boxlite_server.client.credentials import Profile
from boxlite_server.errors import BoxliteError

WORK = Profile("https://boxes.example:8200", "blt_0123456789", "acme")


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BOXLITE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "credentials.toml"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_profile_is_kept_for_its_owner_alone(file: Path) -> None:
    assert credentials.load("default") is None
    credentials.save("default", WORK)
    assert credentials.load("default") == WORK
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)
    assert [each.name for each in file.parent.iterdir()] == ["credentials.toml"]


def test_without_a_home_of_its_own_the_file_is_that_of_upstream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BOXLITE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    credentials.save("default", WORK)
    document = tomllib.loads((tmp_path / ".boxlite" / "credentials.toml").read_text())
    assert document == {"profiles": {"default": WORK._asdict()}}


def test_a_profile_without_key_and_prefix_has_no_such_fields(file: Path) -> None:
    credentials.save("default", Profile("http://localhost:8100"))
    assert tomllib.loads(file.read_text()) == {"profiles": {"default": {"url": "http://localhost:8100"}}}
    assert credentials.load("default") == Profile("http://localhost:8100")


def test_what_others_keep_in_the_file_stays(file: Path) -> None:
    theirs = """
version = 2
[profiles.default]
url = "http://localhost:8100"
api_key = "old"
[profiles.cloud]
url = "https://api.example/api"
expires_at = 2026-05-21T15:42:00Z
scopes = ["a", "b\\u007f\\"\\\\"]
[profiles.cloud.oidc]
refresh_token = "täglich"
fresh = true
share = 0.5
[profiles."mit leer.zeichen"]
url = "x"
"""
    file.parent.mkdir()
    file.write_text(theirs)
    file.chmod(0o600)
    expected = tomllib.loads(theirs)
    expected["profiles"]["default"] = WORK._asdict()
    credentials.save("default", WORK)
    assert tomllib.loads(file.read_text()) == expected
    assert credentials.remove("default")
    del expected["profiles"]["default"]
    assert tomllib.loads(file.read_text()) == expected


def test_the_last_profile_takes_the_file_with_it(file: Path) -> None:
    assert not credentials.remove("default")
    credentials.save("default", WORK)
    credentials.save("work", WORK)
    assert credentials.remove("default")
    assert credentials.load("work") == WORK
    assert credentials.remove("work")
    assert not file.exists()


def _log_in(home: str, number: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOXLITE_HOME", home)
        credentials.save(f"profile-{number}", WORK)


def test_logins_at_the_same_time_lose_none(file: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_log_in, args=(str(file.parent), number)) for number in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert set(tomllib.loads(file.read_text())["profiles"]) == {f"profile-{number}" for number in range(6)}


def test_a_file_that_cannot_be_replaced_stays_whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials.save("default", WORK)
    before = file.read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BoxliteError, match="No space left on device"):
        credentials.save("default", WORK._replace(api_key="new"))
    assert file.read_bytes() == before
    assert [each.name for each in file.parent.iterdir()] == ["credentials.toml"]


def test_a_link_to_the_file_stays_a_link(file: Path, tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "boxlite.toml"
    real.parent.mkdir()
    file.parent.mkdir()
    file.symlink_to(real)
    credentials.save("default", WORK)
    assert file.is_symlink()
    assert credentials.load("default") == WORK
    assert mode(real) == 0o600


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[profiles", "is not TOML"),
        ("profiles = 3", "have to be tables"),
        ("[profiles]\ndefault = 3", "have to be tables"),
        ("[profiles.default]\nurl = 3", "have to be texts"),
    ],
)
def test_a_file_that_is_broken_is_named_and_not_overwritten(file: Path, text: str, said: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(BoxliteError, match=said):
        credentials.load("default")
    if said != "have to be texts":
        with pytest.raises(BoxliteError, match=said):
            credentials.save("default", WORK)
        assert file.read_text() == text


def test_a_file_that_others_can_read_is_warned_of(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    credentials.save("default", WORK)
    file.chmod(0o644)
    assert credentials.load("default") == WORK
    assert capsys.readouterr().err == (f"Warning: others can read the API keys in {file}; type: chmod 600 {file}\n")
    credentials.save("default", WORK)
    assert mode(file) == 0o600
