"""The wheel holds all that an installation needs, and says what it is."""

from __future__ import annotations

import email
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest

from boxlite_server import __version__, specs

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "boxlite_server"


@pytest.fixture(scope="module")
def wheel(built_wheel: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(built_wheel) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def test_the_metadata(metadata: Message) -> None:
    assert metadata["Name"] == "boxlite-server"
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Author"] == "The boxlite-server authors"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Keywords"]
    assert [url.split(",")[0] for url in metadata.get_all("Project-URL", [])] == ["Repository"]
    assert metadata.get_payload() == (ROOT / "README.md").read_text()


def test_the_license_travels_along(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
    assert wheel.read(name).decode() == (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("spec", ["openapi.yaml", "worker.proto"])
def test_the_specs_travel_along(wheel: zipfile.ZipFile, spec: str) -> None:
    assert wheel.read(f"boxlite_server/{spec}") == (ROOT / spec).read_bytes()


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 62), ("aarch64", 183)])
def test_the_supervisor_is_built_for_each_machine(wheel: zipfile.ZipFile, machine: str, number: int) -> None:
    info = wheel.getinfo(f"boxlite_server/worker/supervisor/init-{machine}")
    program = wheel.read(info)
    assert program[:4] == b"\x7fELF"
    assert int.from_bytes(program[18:20], "little") == number  # e_machine
    assert b"/ld-" not in program  # it is static
    assert len(program) < 100_000
    assert info.external_attr >> 16 & 0o777 == 0o755
    assert (PACKAGE / f"worker/supervisor/init-{machine}").read_bytes() == program


def test_nothing_of_the_package_is_left_out(wheel: zipfile.ZipFile) -> None:
    written = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"boxlite_server/py.typed", "boxlite_server/_gen/worker_pb2.pyi"} <= written
    assert any(name.endswith(".sql") for name in written)
    assert written <= set(wheel.namelist())


def test_nothing_else_is_in_it(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0] for name in wheel.namelist()} == {
        "boxlite_server",
        f"boxlite_server-{__version__}.dist-info",
    }


def test_the_commands_are_installed(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    commands = [line.split(" = ")[0] for line in wheel.read(name).decode().splitlines() if " = " in line]
    assert sorted(commands) == ["boxlite", "boxlite-server"]


def test_the_api_has_the_version_of_the_package() -> None:
    assert specs.openapi()["info"]["version"] == __version__
