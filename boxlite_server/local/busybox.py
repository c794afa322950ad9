"""Makes a small image for machines that reach no registry: a static busybox and nothing else, about 2 MB."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlencode

from ..errors import EngineError
from . import dockerd, machine

DIRECTORIES = {
    "bin": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "home/box": 0o755,
    "root": 0o700,
    "tmp": 0o1777,
    "var": 0o755,
}
USERS = """\
root:x:0:0:root:/root:/bin/sh
box:x:1000:1000:box:/home/box:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
"""
GROUPS = """\
root:x:0:
box:x:1000:
nogroup:x:65534:
"""


def import_image(docker_host: str, reference: str, *, cmd: Sequence[str] = ("sh",)) -> None:
    """Make the image `reference` (name:tag) on an engine: busybox's commands in /bin, and a user `box` with uid 1000.

    `cmd` is the image's command; if it is empty, the image has none. Raises `EngineError` when there is no static
    busybox on this machine and none can be downloaded, which needs the apt-get of Debian or Ubuntu.
    """
    name, _, tag = reference.rpartition(":")
    changes = ["ENV PATH=/bin"] + ([f"CMD {json.dumps(list(cmd))}"] if cmd else [])
    query = urlencode({"fromSrc": "-", "repo": name, "tag": tag, "changes": changes}, doseq=True)
    dockerd.request(docker_host, "POST", f"/images/create?{query}", archive())


def archive() -> bytes:
    """The image's root file system as a tar archive. Raises `EngineError` as `import_image` does."""
    with tempfile.TemporaryDirectory() as directory:
        return _archive(_find(Path(directory)))


def _find(directory: Path) -> Path:
    """The machine's own busybox if it is static, else Debian's, unpacked below `directory`.

    Debian's package is not installed: it would replace a dynamically linked busybox that the machine may need.
    """
    installed = machine.which("busybox")
    if installed and _is_static(Path(installed)):
        return Path(installed)
    if machine.which("apt-get") is None:
        raise EngineError("a statically linked busybox is missing; install one")
    download = ("apt-get", "download", "busybox-static")
    with machine.apt_alone():
        done = machine.run(*download, cwd=directory)
        if done.returncode != 0 and os.geteuid() == 0:
            machine.run("apt-get", "update")
            done = machine.run(*download, cwd=directory)
    package = next(directory.glob("*.deb"), None)
    if package is None:
        raise EngineError(f"apt-get download busybox-static failed: {done.stderr.strip()[-2000:]}")
    machine.run("dpkg-deb", "--extract", str(package), str(directory / "root"))
    return next(path for path in directory.glob("root/**/bin/busybox") if path.is_file())


def _is_static(program: Path) -> bool:
    """Whether the head of the program names no dynamic loader."""
    with program.open("rb") as opened:
        return b"/ld-" not in opened.read(4096)


def _archive(program: Path) -> bytes:
    """The root file system with `program` as its busybox, as a tar archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:

        def add(name: str, mode: int, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
            entry = tarfile.TarInfo(name)
            entry.mode, entry.type, entry.linkname, entry.size = mode, kind, link, len(data)
            entry.uid = entry.gid = 1000 if name == "home/box" else 0
            tar.addfile(entry, io.BytesIO(data))

        for name, mode in DIRECTORIES.items():
            add(name, mode, kind=tarfile.DIRTYPE)
        add("bin/busybox", 0o755, program.read_bytes())
        add("etc/passwd", 0o644, USERS.encode())
        add("etc/group", 0o644, GROUPS.encode())
        for command in machine.run(str(program), "--list").stdout.split():
            if command != "busybox":
                add(f"bin/{command}", 0o777, kind=tarfile.SYMTYPE, link="busybox")
    return archive.getvalue()
