"""The file service: what the program does with requests, and what the worker makes of whatever answers it."""

from __future__ import annotations

import errno
import os
import resource
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from boxlite_server.worker.supervisor import service
from boxlite_server.worker.supervisor.command import Command, UnheardError
from boxlite_server.worker.supervisor.service import MAX_BYTES, FileService, Found, Programs, UnservedError

ANSWER = struct.Struct("<IIIII4xq")
REQUEST = struct.Struct("<B3xIIIIIqI4x")
ME = Found(0o644, os.geteuid(), os.getegid(), 0)


class Other:
    """The other ends of the pipes."""

    def __init__(self, requests: int, answers: int) -> None:
        self.requests = os.fdopen(requests, "rb", buffering=0)
        self.answers = os.fdopen(answers, "wb", buffering=0)

    def recv(self, size: int) -> bytes:
        return self.requests.read(size) or b""

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.answers.write(view) :]

    def __enter__(self) -> Other:
        return self

    def __exit__(self, *_: object) -> None:
        self.requests.close()
        self.answers.close()


Answering = Callable[[Other], object]


class Played:
    """In place of a link: whatever plays the program in the box gets the other ends of the pipes."""

    def __init__(self, play: Answering) -> None:
        self._play = play
        self.left: list[bool] = []  # whether commands were to be killed when they were let go

    def start(self, spec: int, size: object, streams: Sequence[int], *, is_own: bool) -> Command:
        assert is_own
        other = Other(os.dup(streams[0]), os.dup(streams[1]))
        threading.Thread(target=self._run, args=(other,), daemon=True).start()
        return Command(1, has_terminal=False)

    def _run(self, other: Other) -> None:
        with other, suppress(ConnectionError):
            self._play(other)

    def leave(self, command: Command, *, kill: bool) -> None:
        self.left.append(kill)


def programs(link: Any, later: Callable[[float, Callable[[], None]], None] = lambda *_: None) -> Programs:
    return Programs(link, "/init", later)


def served(play: Answering) -> tuple[FileService, Played]:
    played = Played(play)
    return FileService(programs(played)), played


@pytest.fixture
def real(supervisor: Path) -> Iterator[FileService]:
    """The program itself, on this host."""
    made = []

    def play(other: Other) -> None:
        made.append(subprocess.Popen([supervisor, "--files"], stdin=other.requests, stdout=other.answers))

    kept = programs(Played(play), lambda _, function: function())  # it rests for no time
    found = FileService(kept)
    yield found
    found.close()
    assert [process.wait(60) for process in made] in ([], [0])


# ---- what the worker makes of answers -------------------------------------------------------------------

LIES: dict[str, bytes] = {
    "nothing": b"",
    "a part": b"\0" * 31,
    "more than a file may have": ANSWER.pack(0, MAX_BYTES + 1, stat.S_IFREG, 0, 0, 0),
    "as much as there is": ANSWER.pack(0, 2**32 - 1, stat.S_IFREG, 0, 0, 0) + bytes(4096),
    "less than it says": ANSWER.pack(0, 100, stat.S_IFREG, 0, 0, 0) + bytes(99),
    "a directory": ANSWER.pack(0, 1, stat.S_IFDIR, 0, 0, 0) + b"x",
    "a user that cannot be": ANSWER.pack(0, 0, stat.S_IFREG, 2**32 - 1, 0, 0),
    "a time that cannot be": ANSWER.pack(0, 0, stat.S_IFREG, 0, 0, 2**62),
    "an unknown error": ANSWER.pack(2**32 - 1, 0, 0, 0, 0, 0),
    "an error": ANSWER.pack(errno.EACCES, 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_answer_that_cannot_be_is_none(lie: str) -> None:
    def play(other: Other) -> None:
        other.recv(1 << 16)
        other.sendall(LIES[lie])

    found, played = served(play)
    with pytest.raises(UnservedError):
        found.read("/f")
    found.close()
    assert played.left == ([] if lie in ("an error", "an unknown error") else [True])


ENTRY = struct.Struct("<QqIHH")


def listed(*entries: tuple[bytes, bytes], more: bytes = b"\0", **fields: int) -> bytes:
    """A list of files by their names, and the texts of links."""
    content = more
    for name, text in entries:
        head = ENTRY.pack(fields.get("size", 0), fields.get("time", 0), stat.S_IFREG, len(name), len(text))
        content += head + name + text
    return content


LISTS: dict[str, bytes] = {
    "nothing": b"",
    "a name with a slash": listed((b"../f", b"")),
    "the directory above": listed((b"..", b"")),
    "an empty name": listed((b"", b"")),
    "a name with NUL": listed((b"a\0b", b"")),
    "a name that no file system has": listed((b"x" * 256, b"")),
    "names in another order": listed((b"b", b""), (b"a", b"")),
    "a name twice": listed((b"a", b""), (b"a", b"")),
    "a name in front of those asked for": listed((b"A", b"")),
    "more without an entry": listed(more=b"\1"),
    "half of an entry": listed((b"a", b""))[:-10],
    "less of a link than it says": listed((b"a", b"text"))[:-1],
    "a size that cannot be": listed((b"a", b""), size=2**63),
    "a time that cannot be": listed((b"a", b""), time=2**60),
}


@pytest.mark.parametrize("lie", LISTS)
def test_a_list_that_cannot_be_is_none(lie: str) -> None:
    content = LISTS[lie]

    def play(other: Other) -> None:
        other.recv(1 << 16)
        other.sendall(ANSWER.pack(0, len(content), stat.S_IFDIR, 0, 0, 0) + content)

    found, played = served(play)
    with pytest.raises(UnservedError):
        found.entries("/d", "B")
    found.close()
    assert played.left == [True]


@pytest.mark.parametrize("details", [b"short", struct.pack("<QI4x", 2**63, 0), struct.pack("<QI4x", 0, 10**9)])
def test_details_that_cannot_be_are_none(details: bytes) -> None:
    def play(other: Other) -> None:
        other.recv(1 << 16)
        other.sendall(ANSWER.pack(0, len(details), stat.S_IFREG, 0, 0, 0) + details)

    found, _ = served(play)
    with pytest.raises(UnservedError):
        found.stat("/f")
    found.close()


def test_an_older_program_tells_no_size() -> None:
    def play(other: Other) -> None:
        other.recv(1 << 16)
        other.sendall(ANSWER.pack(0, 0, stat.S_IFREG, 0, 0, 5))

    found, _ = served(play)
    assert found.stat("/f") == Found(stat.S_IFREG, 0, 0, 5 * 10**9)
    found.close()


@pytest.mark.parametrize("piece", [b"", b"\0"])
def test_a_program_that_never_ends_its_answer_is_killed(monkeypatch: pytest.MonkeyPatch, piece: bytes) -> None:
    monkeypatch.setattr(service, "PATIENCE", 0.3)
    done = threading.Event()

    def play(other: Other) -> None:
        try:
            while not done.wait(0.05):
                other.sendall(piece)
        except OSError:
            pass

    found, played = served(play)
    began = time.monotonic()
    with pytest.raises(UnservedError):
        found.read("/f")
    assert time.monotonic() - began < 30
    assert played.left == [True]
    with pytest.raises(UnservedError):
        found.stat("/f")
    assert played.left == [True]
    found.close()
    done.set()


def test_a_program_that_takes_nothing_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PATIENCE", 0.3)
    done = threading.Event()
    found, played = served(lambda other: done.wait(60))
    with pytest.raises(UnservedError):
        found.write("/f", ME, bytes(MAX_BYTES))
    assert played.left == [True]
    done.set()


def test_without_a_supervisor_nothing_is_served() -> None:
    class Deaf:
        def start(self, *_: object, is_own: bool) -> Command:
            raise UnheardError

    found = FileService(programs(Deaf()))
    for _ in range(2):
        with pytest.raises(UnservedError):
            found.stat("/f")
    found.close()


# ---- one transfer after the other ----------------------------------------------------------------------


def test_the_next_transfer_asks_the_same_program_unless_that_has_said_more() -> None:
    spoken = [ANSWER.pack(errno.ENOENT, 0, 0, 0, 0, 0)] * 2 + [ANSWER.pack(errno.ENOENT, 0, 0, 0, 0, 0) + b"more"]
    heard: list[bytes] = []
    started: list[int] = []

    def play(other: Other) -> None:
        started.append(1)
        while said := other.recv(1 << 16):
            heard.append(said)
            other.sendall(spoken[min(len(heard) - 1, 2)])

    played = Played(play)
    kept = programs(played)
    for number in range(1, 5):
        found = FileService(kept)
        assert found.stat("/f") is None
        found.close()
        assert (len(started), len(heard)) == (max(1, number - 2), number)
    assert played.left == [True]


def test_a_program_rests_for_a_while_alone() -> None:
    due: list[Callable[[], None]] = []
    played = Played(answering_that_nothing_is_there)
    kept = programs(played, lambda seconds, function: due.append(function))
    both = [FileService(kept), FileService(kept)]
    for found in both:
        assert found.stat("/f") is None
    for found in both:
        found.close()
    assert played.left == [False]  # of two one is enough
    for function in due:
        function()
    assert played.left == [False, False]


def answering_that_nothing_is_there(other: Other) -> None:
    while other.recv(1 << 16):
        other.sendall(ANSWER.pack(errno.ENOENT, 0, 0, 0, 0, 0))


# ---- what the program does ------------------------------------------------------------------------------


def test_stat_and_what_is_not_there(real: FileService, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "l").symlink_to("f")
    for name in ("nosuch", "f/below", "nosuch/below"):
        assert real.stat(f"{tmp_path}/{name}") is None
    found = real.stat("/proc/self/nosuch")
    assert found is None
    with pytest.raises(UnservedError):
        real.stat("/proc/self/status")
    with pytest.raises(UnservedError):
        real.read("/proc/version")


@pytest.mark.parametrize("path", ["relative", "", "/" + "x" * 5000, "/a\0b"])
def test_a_path_that_no_worker_asks_for(real: FileService, path: str) -> None:
    with pytest.raises(UnservedError):
        real.stat(path)


def on_disk(tmp_path: Path, real: FileService) -> Path:
    """A directory that the program does not take for one of the running box alone."""
    for place in (tmp_path, Path(__file__).parent):
        try:
            real.stat(str(place))
        except UnservedError:
            continue
        return place
    pytest.skip("all directories are in memory")


def test_a_write_that_fails_leaves_the_former_file(
    supervisor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk: the program may write no more than some bytes."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    def play(other: Other) -> None:
        subprocess.Popen([supervisor, "--files"], stdin=other.requests, stdout=other.answers, preexec_fn=limit)

    found, played = served(play)
    (tmp_path / "f").write_bytes(b"former")
    with pytest.raises(UnservedError):
        found.write(f"{tmp_path}/f", ME, bytes(100_000))
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"former"
    found.close()
    assert played.left == []  # it has told of its failure, and goes on


def test_a_write_replaces_a_link_and_no_directory(real: FileService, tmp_path: Path) -> None:
    place = on_disk(tmp_path, real)
    if place != tmp_path:
        pytest.skip("the directory for tests is in memory")
    (tmp_path / "d").mkdir()
    (tmp_path / "l").symlink_to("/etc/passwd")
    with pytest.raises(UnservedError):
        real.write(f"{tmp_path}/d", ME, b"x")
    real.write(f"{tmp_path}/l", ME, b"x")
    assert not (tmp_path / "l").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "l"]


def test_a_request_that_no_worker_sends_ends_the_program(supervisor: Path, tmp_path: Path) -> None:
    path = f"{tmp_path}/f".encode()
    for head in (
        REQUEST.pack(ord("W"), len(path), MAX_BYTES + 1, 0o644, 0, 0, 0, 0),
        REQUEST.pack(ord("W"), len(path), 2**32 - 1, 0o644, 0, 0, 0, 0),
        REQUEST.pack(ord("R"), len(path), 1, 0, 0, 0, 0, 0),
        REQUEST.pack(ord("S"), 0, 0, 0, 0, 0, 0, 0),
        REQUEST.pack(ord("S"), 4096, 0, 0, 0, 0, 0, 0),
        REQUEST.pack(ord("S"), 2**32 - 1, 0, 0, 0, 0, 0, 0),
        REQUEST.pack(ord("W"), len(path), 0, 0o100644, 0, 0, 0, 0),
        REQUEST.pack(ord("W"), len(path), 0, 0o644, 0, 0, 0, 10**9),
    ):
        done = subprocess.run([supervisor, "--files"], input=head + path + bytes(5000), capture_output=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, b"")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_request_is_refused(supervisor: Path) -> None:
    head = REQUEST.pack(ord("Z"), 1, 0, 0, 0, 0, 0, 0)
    done = subprocess.run([supervisor, "--files"], input=head + b"/", capture_output=True, timeout=60)
    assert ANSWER.unpack(done.stdout)[0] == errno.ENOSYS


# ---- directories ----------------------------------------------------------------------------------------


def test_a_large_directory_is_listed_in_order_piece_by_piece(real: FileService, tmp_path: Path) -> None:
    names = [f"{number:05}" + "x" * (number % 200) for number in range(3000)]
    for name in names:
        (tmp_path / name).touch()
    seen, after, more = list[str](), "", True
    while more:
        found, more = real.entries(str(tmp_path), after)
        assert 0 < len(found) <= 1000
        seen += found
        after = seen[-1]
    assert seen == names


def test_long_links_make_a_list_shorter(real: FileService, tmp_path: Path) -> None:
    for number in range(400):
        (tmp_path / f"{number:03}").symlink_to("x" * 4000)
    found, more = real.entries(str(tmp_path), "")
    assert (100 < len(found) < 300, more) == (True, True)
    assert {entry.text for entry in found.values()} == {"x" * 4000}
    assert sum(map(len, real.entries(str(tmp_path), max(found))[:1])) == 400 - len(found)


def test_what_is_no_directory_is_not_listed(real: FileService, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "l").symlink_to(tmp_path)
    for name in ("f", "l", "nosuch"):
        with pytest.raises(UnservedError):
            real.entries(str(tmp_path / name), "")
    assert list(real.entries(str(tmp_path), "")[0]) == ["f", "l"]
