"""A PostgreSQL server of our own, and the balancer before the coordinators that share it."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import threading
from contextlib import suppress
from pathlib import Path

from boxlite_server.local.machine import apt_install, run

from .isolation import must
from .world import PORT, SWITCH, Machine, Process, World, wait_until

ADDRESS = "10.213.0.9"
URL = f"postgresql://boxlite@{ADDRESS}/boxlite"
AS_NOBODY = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]  # PostgreSQL refuses to run as root


def obstacle() -> str | None:
    """Why there can be no server; None when there can. Debian and Ubuntu get one installed."""
    if not _programs():
        apt_install("postgresql")
    return None if _programs() else "PostgreSQL's server is not installed"


def _programs() -> Path | None:
    """The directory of the newest version's programs; None where there are none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else None


def start(world: World) -> str:
    """Start a server on a machine of its own: the database's URL."""
    programs = _programs()
    assert programs is not None
    machine = Machine("database", ADDRESS)
    data = world.directory / "postgres"
    data.mkdir(mode=0o700)
    shutil.chown(data, "nobody", "nogroup")
    must(
        *AS_NOBODY,
        str(programs / "initdb"),
        "--auth=trust",
        "--username=boxlite",
        "--encoding=UTF8",
        "--locale=C",
        "-D",
        str(data),
    )
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all 10.213.0.0/24 trust\n")
    command = [*AS_NOBODY, str(programs / "postgres"), "-D", str(data), "-k", str(data)]
    command += ["-c", f"listen_addresses={ADDRESS}", "-c", "max_connections=100"]
    world.database = Process(machine, "database", command, world.logs)
    world.database.start()
    create = machine.here(str(programs / "createdb"), "-h", ADDRESS, "-U", "boxlite", "boxlite")
    wait_until(lambda: run(*create).returncode == 0, "PostgreSQL answers")
    return URL


def balance(backends: list[str]) -> str:
    """Hand connections to the backends in turn, passing over one that cannot be connected to: the URL."""
    loop = asyncio.new_event_loop()
    turn = itertools.cycle(range(len(backends)))

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        first = next(turn)
        for number in range(len(backends)):
            with suppress(OSError, TimeoutError):
                address = backends[(first + number) % len(backends)]
                return await asyncio.wait_for(asyncio.open_connection(address, PORT), 3)
        return None

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        backend = await connect()
        if backend is None:
            writer.close()
            return
        await asyncio.gather(copy(reader, backend[1]), copy(backend[0], writer))

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        with suppress(OSError):
            writer.close()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(asyncio.start_server(serve, SWITCH, PORT))
        loop.run_forever()

    threading.Thread(target=run, name="balancer", daemon=True).start()
    return f"http://{SWITCH}:{PORT}"
