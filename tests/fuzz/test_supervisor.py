"""Damaged specs, account files, packets and requests for files against the supervisor's program, built with sanitizers.

`make test` does that for a moment, `make fuzz` for a minute or as many seconds as it is given.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.supervisor_peer import Packet, Peer, memory_file, spec_bytes

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "boxlite_server/worker/supervisor/init"
SOURCES = sorted(FOLDER.glob("*.c"))
SECONDS = os.environ.get("BOXLITE_FUZZ_SECONDS")  # of `make fuzz`; 0: it was given none
FLAGS = ["-g", "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{FOLDER}"]
COMMANDS = [["true"], ["sleep", "0.01"], ["sleep", "1000"], ["sh", "-c", "sleep 1 &"], ["nosuch"]]


def deadline() -> float:
    return time.monotonic() + (1.0 if SECONDS is None else float(SECONDS) or 60.0)


def compile_with_sanitizers(sources: list[Path], program: Path) -> Path:
    """With both sanitizers if the machine has a compiler, or with one by the compiler that builds the package."""
    if compiler := shutil.which("clang") or shutil.which("gcc"):
        command = [compiler, "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    elif importlib.util.find_spec("ziglang"):
        command = [sys.executable, "-m", "ziglang", "cc", "-fsanitize=undefined", "-fno-sanitize-trap=undefined"]
    else:
        pytest.skip("this takes clang, gcc or the package ziglang")
    subprocess.run([*command, *FLAGS, *sources, "-o", program], check=True)
    return program


@pytest.mark.timeout(0 if SECONDS else 180)
def test_damaged_specs_users_and_account_files(tmp_path: Path) -> None:
    parsers = [path for path in SOURCES if path.name != "supervisor.c"]
    program = compile_with_sanitizers([Path(__file__).with_name("supervisor_fuzz.c"), *parsers], tmp_path / "fuzz")
    until = deadline()
    while True:
        seed = random.randrange(1 << 63)
        done = subprocess.run([program, str(seed), "20000"], capture_output=True, check=False)
        assert done.returncode == 0 and not done.stderr, f"seed {seed}: {(done.stdout + done.stderr).decode()}"
        if time.monotonic() > until:
            return


class Fuzzer:
    """Sends packets, most of them nearly right, and takes whatever comes."""

    def __init__(self, peer: Peer, seed: int) -> None:
        self._peer = peer
        self._random = random.Random(seed)

    def go_on(self) -> None:
        """Send one packet. Where the supervisor then hangs up, it has to dial again."""
        try:
            if self._random.random() < 0.03:
                assert self._peer.connection is not None
                self._peer.connection.send(self._random.randbytes(self._random.choice([0, 1, 15, 16, 17, 40_000])))
            else:
                self._send()
            self._take(0.001)
        except (ConnectionResetError, BrokenPipeError):
            assert self._peer.connection is not None
            self._peer.connection.close()
            self._peer.accept()

    def _send(self) -> None:
        kind = self._random.choice("SSSSMGKFFFFZ")
        flags = self._random.choice([0, 0, 0, 1, 255])
        count = self._random.choice([1 if flags & 1 else 4] * 9 + [0, 2, 5, 20])
        made = [memory_file(self._spec())] + [os.open(os.devnull, os.O_RDWR) for _ in range(1, count)]
        passed = tuple(made[:count]) if kind in "SM" or self._random.random() < 0.02 else ()
        number = self._random.choice([0, 9, 15, 18, 19, 64, 65, 1 << 31, (1 << 32) - 1])
        try:
            self._peer.send(Packet(kind, self._random.randrange(0, 40), number, number, flags, passed))
        finally:
            for descriptor in made:
                os.close(descriptor)

    def _spec(self) -> bytes:
        user = self._random.choice(["", "", "", "nobody", "1:2", "nosuch", ":", "99999999999", "\udcff"])
        argv = self._random.choice(COMMANDS)
        spec = spec_bytes(argv, {"PATH": "/usr/bin:/bin"}, user, self._random.choice(["", "/", "/nosuch"]))
        if self._random.random() < 0.3:
            at = self._random.randrange(8)
            spec = spec[:at] + self._random.randbytes(1) + spec[at + 1 :]
        return spec[: self._random.randrange(len(spec))] if self._random.random() < 0.1 else spec

    def _take(self, seconds: float) -> None:
        assert self._peer.connection is not None
        self._peer.connection.settimeout(seconds)
        try:
            while True:
                for descriptor in self._peer.receive().descriptors:
                    os.close(descriptor)
        except (TimeoutError, BlockingIOError):
            pass
        finally:
            self._peer.connection.settimeout(60)


@pytest.mark.timeout(0 if SECONDS else 180)
def test_packets_that_no_worker_sends(tmp_path: Path) -> None:
    program = compile_with_sanitizers(SOURCES, tmp_path / "sanitized")
    (tmp_path / "at").mkdir()
    peer = Peer(tmp_path / "at", program)
    errors = tmp_path / "errors"
    options = f"log_path={errors}:detect_leaks=0"  # its tables live as long as the process
    environment = {**os.environ, "ASAN_OPTIONS": options, "UBSAN_OPTIONS": options}
    supervisor = subprocess.Popen([tmp_path / "at" / "init"], env=environment)
    try:
        peer.accept()
        seed, until = random.randrange(1 << 63), deadline()
        fuzzer = Fuzzer(peer, seed)
        while time.monotonic() < until:
            fuzzer.go_on()
        assert supervisor.poll() is None, f"seed {seed}"
        for path in tmp_path.glob("errors.*"):  # of the supervisor or a keeper; some have warnings alone
            text = path.read_text()
            assert "ERROR" not in text and "runtime error" not in text, f"seed {seed}: {text}"
    finally:
        supervisor.kill()  # its keepers see that, and kill their commands
        supervisor.wait()


REQUEST = struct.Struct("<B3xIIIIIqI4x")


NAMES = ["file", "directory", "link", "circle", "pipe", "new", "directory/x", "nosuch/x"]
DAMAGE = {
    "path_size": [0, 1, 4095, 4096, (1 << 32) - 1],
    "size": [1, (1 << 20) + 1, (1 << 32) - 1],
    "mode": [1 << 12, 1 << 31],
    "nanoseconds": [10**9, (1 << 32) - 1],
    "kind": [0, ord("s"), 255],
}


def request(draw: random.Random, place: Path, *, is_damaged: bool) -> bytes:
    """A request to the file service. Where it is damaged, one field is; what is written is in its place alone."""
    kind, path = draw.choice("SRWW"), os.fsencode(place / draw.choice(NAMES))
    content = draw.randbytes(draw.choice([0, 1, 512, 70_000, 1 << 20])) if kind == "W" else b""
    head = {
        "kind": ord(kind),
        "path_size": len(path),
        "size": len(content),
        "mode": draw.choice([0, 0o644, 0o7777]),
        "uid": os.geteuid(),
        "gid": os.getegid(),
        "seconds": draw.randrange(1 << 33),
        "nanoseconds": draw.choice([0, 999_999_999]),
    }
    if is_damaged:
        field = draw.choice([name for name in DAMAGE if (kind, name) != ("W", "path_size")])
        head[field] = draw.choice(DAMAGE[field])
    return REQUEST.pack(*head.values()) + path + content


def requests(draw: random.Random, place: Path) -> bytes:
    """Some requests, and something at the end that is none."""
    sent = b"".join(request(draw, place, is_damaged=False) for _ in range(draw.randrange(5)))
    if draw.random() < 0.2:
        return sent[: draw.randrange(len(sent) + 1)]
    return sent + request(draw, place, is_damaged=True) + draw.randbytes(5000)


@pytest.mark.timeout(0 if SECONDS else 180)
def test_requests_for_files_that_no_worker_sends(tmp_path: Path) -> None:
    program = compile_with_sanitizers(SOURCES, tmp_path / "sanitized")
    place = tmp_path / "place"
    (place / "directory").mkdir(parents=True)
    (place / "file").write_bytes(bytes(1000))
    (place / "link").symlink_to("file")
    (place / "circle").symlink_to("circle")
    os.mkfifo(place / "pipe")
    until = deadline()
    while time.monotonic() < until:
        seed = random.randrange(1 << 63)
        sent = requests(random.Random(seed), place)
        done = subprocess.run([program, "--files"], input=sent, capture_output=True, check=False, timeout=60)
        assert done.returncode in (0, -signal.SIGPIPE) and not done.stderr, f"seed {seed}: {done.stderr.decode()}"
    assert not list(place.glob("**/.boxlite-*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["place", "sanitized"]
