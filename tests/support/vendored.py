"""What the page holds of others' packages, and `python -m support.vendored`, which takes it from npm's registry.

The files are in the repository, so that neither an installation nor a checkout needs Node or npm's registry. A new
version: change the table, run the command, look at the difference, and put the digests that it names into the table.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

_VENDOR = Path(__file__).parents[2] / "boxlite_server/coordinator/web/static/vendor"


class File(NamedTuple):
    """A file in its package, its path here, and its digest."""

    source: str
    path: Path
    sha256: str


class Package(NamedTuple):
    """A package; `integrity` is that of npm, of the whole archive."""

    name: str
    version: str
    integrity: str
    files: tuple[File, ...] = ()


PACKAGES = (
    Package(
        "@xterm/xterm",
        "6.0.0",
        "sha512-TQwDdQGtwwDt+2cgKDLn0IRaSxYu1tSUjgKarSDkUM0ZNiSRXFpjxEsvc/Zgc5kq5omJ+V0a8/kIM2WD3sMOYg==",
        (
            File(
                "lib/xterm.mjs",
                _VENDOR / "xterm.mjs",
                "b336ec65a086c056d4804b3d4c2347da5663d3f23c3f25be866467bd8857ad59",
            ),
            File(
                "css/xterm.css",
                _VENDOR / "xterm.css",
                "854a7c0fb70e8b1a083c16797ab827299fb18744f5ad34f227b48337e33293c6",
            ),
            File(
                "LICENSE", _VENDOR / "LICENSE-xterm", "b569f629d00f2626a8100df2a1798210535621e42164dfd426a6fe5aac7b0ccd"
            ),
        ),
    ),
    Package(
        "@xterm/addon-fit",
        "0.11.0",
        "sha512-jYcgT6xtVYhnhgxh3QgYDnnNMYTcf8ElbxxFzX0IZo+vabQqSPAjC3c1wJrKB5E19VwQei89QCiZZP86DCPF7g==",
        (
            File(
                "lib/addon-fit.mjs",
                _VENDOR / "addon-fit.mjs",
                "2d87e1bddc73be9111de8beee5370c3bb7aac9c94e18e6f245f02ca741ef1769",
            ),
            File(
                "LICENSE",
                _VENDOR / "LICENSE-addon-fit",
                "e256f01188af527e4d06d21d06fbf785ae9c50d4b328bf03cbe0ba7f0aa4228f",
            ),
        ),
    ),
)

# What the tests use, and nobody else.
AXE = Package(
    "axe-core",
    "4.14.1",
    "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def fetch(package: Package, directory: Path) -> Path:
    """Have npm fetch a package, and unpack it. Returns its directory. Raises ValueError for another archive than the
    table has, and `subprocess.CalledProcessError` where npm fails."""
    wanted = f"{package.name}@{package.version}"
    packed = subprocess.run(
        ["npm", "pack", "--silent", wanted], cwd=directory, check=True, capture_output=True, text=True
    )
    archive = directory / packed.stdout.strip().splitlines()[-1]
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != package.integrity:
        raise ValueError(f"{wanted} is not what was looked at: {found}")
    with tarfile.open(archive) as tar:
        tar.extractall(directory / archive.stem, filter="data")
    return directory / archive.stem / "package"


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        for package in PACKAGES:
            unpacked = fetch(package, Path(directory))
            for file in package.files:
                content = (unpacked / file.source).read_bytes()
                file.path.write_bytes(content)
                print(f"{digest(content)}  {file.path.name}")


if __name__ == "__main__":
    main()
