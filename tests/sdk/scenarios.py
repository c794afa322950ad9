"""What users do with the released SDK, in every generation alike: `python scenarios.py NAME IMAGE`.

Run by the Python that has the SDK, with the cluster in the environment. It ends with exit code 0, or with
the assertion that failed.
"""

import asyncio
import sys
import time
import uuid

from boxlite import Boxlite, BoxliteRestOptions, BoxOptions

IMAGE = sys.argv[2] if len(sys.argv) > 2 else "alpine:latest"


def runtime():
    return Boxlite.rest(BoxliteRestOptions.from_env())


def options(**changes):
    return BoxOptions(**{"image": IMAGE, "cpus": 1, "memory_mib": 128, "auto_remove": False, **changes})


def unique(word):
    return f"{word}-{uuid.uuid4().hex[:8]}"


class Running:
    """A started box that is removed at the end."""

    def __init__(self, **changes):
        self.runtime = runtime()
        self.options = options(**changes)

    async def __aenter__(self):
        self.box = await self.runtime.create(self.options, name=unique("box"))
        await self.box.start()
        return self.box

    async def __aexit__(self, *exc):
        await self.runtime.remove(self.box.id, force=True)


async def text(stream):
    parts = []
    if stream is not None:
        async for part in stream:
            parts.append(part.decode("utf-8", "replace") if isinstance(part, bytes) else part)
    return "".join(parts)


async def outcome(execution):
    """Exit code, stdout, stderr."""
    out, err = await asyncio.gather(text(execution.stdout()), text(execution.stderr()))
    return (await execution.wait()).exit_code, out, err


async def refused(awaitable):
    """The message of the error that it must raise."""
    try:
        await awaitable
    except Exception as exc:
        return str(exc)
    raise AssertionError("it was not refused")


def status(info):
    state = getattr(info, "state", None)
    return str(getattr(state, "status", state)).lower()


async def lifecycle():
    rt, name = runtime(), unique("web")
    box = await rt.create(options(), name=name)
    assert len(box.id) == 12, box.id
    assert (await rt.get(name)).id == box.id
    assert (await rt.get(box.id)).id == box.id
    assert await rt.get("nosuch") is None
    assert await rt.get_info("nosuch") is None
    info = await rt.get_info(name)
    assert (info.id, info.name, info.image, info.cpus, info.memory_mib) == (box.id, name, IMAGE, 1, 128)
    assert "configured" in status(info), status(info)
    assert box.id in [one.id for one in await rt.list_info()]
    await box.start()
    await box.start()
    assert "running" in status(await rt.get_info(name))
    assert "exists" in await refused(rt.create(options(), name=name))
    assert "running" in await refused(rt.remove(name))
    await box.stop()
    assert "stopped" in status(await rt.get_info(name))
    again = await rt.get(name)
    await again.start()
    assert "running" in status(await rt.get_info(name))
    await again.stop()
    await rt.remove(name)
    assert await rt.get(name) is None
    assert box.id not in [one.id for one in await rt.list_info()]


async def output():
    async with Running(env=[("GREETING", "hello")]) as box:
        assert await outcome(await box.exec("echo", ["hello"])) == (0, "hello\n", "")
        script = "echo out; echo err >&2; exit 3"
        assert await outcome(await box.exec("sh", ["-c", script])) == (3, "out\n", "err\n")
        assert await outcome(await box.exec("sh", ["-c", "echo $GREETING $X; pwd"], [("X", "y")], cwd="/tmp")) == (
            0,
            "hello y\n/tmp\n",
            "",
        )
        message = await refused(box.exec("nosuchcommand"))
        assert "not found" in message, message


async def implied_start():
    rt = runtime()
    box = await rt.create(options(), name=unique("lazy"))
    try:
        assert await outcome(await box.exec("echo", ["up"])) == (0, "up\n", "")
        assert "running" in status(await rt.get_info(box.id))
    finally:
        await rt.remove(box.id, force=True)


async def large_output():
    async with Running() as box:
        code, out, _ = await outcome(await box.exec("sh", ["-c", "yes 0123456789abcde | head -c 10485760"]))
        assert code == 0
        assert len(out) == 10485760, len(out)
        assert out == "0123456789abcde\n" * 655360


async def late_reader():
    """Output and exit of a command that ended long before anybody looked."""
    async with Running() as box:
        execution = await box.exec("sh", ["-c", "echo early; exit 7"])
        await (await box.exec("sleep", ["1"])).wait()
        assert await outcome(execution) == (7, "early\n", "")


async def stdin():
    async with Running() as box:
        execution = await box.exec("cat")
        pipe = execution.stdin()
        await pipe.send_input(b"one\n")
        await pipe.send_input("zwölf\n".encode())
        await pipe.close()
        assert await outcome(execution) == (0, "one\nzwölf\n", "")


async def kill():
    async with Running() as box:
        execution = await box.exec("sleep", ["600"])
        await execution.kill()
        code, _, _ = await outcome(execution)
        assert code != 0, code


async def timeout():
    async with Running() as box:
        begun = time.monotonic()
        code, out, _ = await outcome(await box.exec("sh", ["-c", "echo begun; sleep 600"], timeout_secs=1.0))
        assert code != 0, code
        assert out == "begun\n", out
        assert time.monotonic() - begun < 60


async def silence():
    """Without a ping right after the upgrade this takes a reconnect, 25 seconds in all."""
    async with Running() as box:
        begun = time.monotonic()
        code, out, _ = await outcome(await box.exec("sh", ["-c", "sleep 13; echo woke"]))
        took = time.monotonic() - begun
        assert (code, out) == (0, "woke\n"), (code, out)
        assert took < 20, took


async def auto_remove():
    rt = runtime()
    box = await rt.create(options(auto_remove=True), name=unique("gone"))
    await box.start()
    await box.stop()
    if "auto_remove" in sys.argv[3:]:  # only the older generations say so to the server
        assert await rt.get(box.id) is None
    else:
        await rt.remove(box.id, force=True)


async def bad_image():
    message = await refused(runtime().create(options(image="127.0.0.1:9/nosuch:never"), name=unique("bad")))
    assert "127.0.0.1:9/nosuch:never" in message or "images error" in message, message


async def spec():
    """What is asked for is what the box gets."""
    async with Running(user="box", working_dir="/tmp") as box:
        assert await outcome(await box.exec("sh", ["-c", "id -un; pwd"])) == (0, "box\n/tmp\n", "")
    async with Running(entrypoint=["sh", "-c"], cmd=["echo main > /tmp/main; sleep 600"]) as box:
        script = "while ! test -s /tmp/main; do :; done; cat /tmp/main"
        assert await outcome(await box.exec("sh", ["-c", script], timeout_secs=20.0)) == (0, "main\n", "")


async def terminal():
    """A shell on a terminal: keys in, what it shows out, a new size, the end of input."""
    async with Running() as box:
        execution = await box.exec("sh", tty=True)
        keys, shown = execution.stdin(), ""

        async def until(word):
            nonlocal shown
            async for part in screen:
                shown += part.decode("utf-8", "replace") if isinstance(part, bytes) else part
                if word in shown:
                    return
            raise AssertionError(f"{word!r} was never shown: {shown!r}")

        screen = execution.stdout()
        await keys.send_input(b"stty -echo; tty; echo $((6*7))\n")
        await until("42")
        assert "/dev/" in shown, shown
        await execution.resize_tty(33, 101)
        await keys.send_input(b"stty size\n")
        await until("33 101")
        await keys.send_input(b"sleep 600\n\x03")
        await keys.send_input(b"echo $((7*8))\n")
        await until("56")
        await keys.send_input(b"exit 5\n")
        assert (await execution.wait()).exit_code == 5


async def main_session():
    """Attach, then start: the main command does not run before, and nothing it says is missed."""
    rt = runtime()
    box = await rt.create(options(cmd=["sh", "-c", "echo begun; cat; echo over >&2; exit 4"]), name=unique("main"))
    try:
        session = await box.attach()
        assert "configured" in status(await rt.get_info(box.id))
        await box.start()
        pipe = session.stdin()
        await pipe.send_input(b"word\n")
        await pipe.close()
        assert await outcome(session) == (4, "begun\nword\n", "over\n")
    finally:
        await rt.remove(box.id, force=True)


async def main_terminal():
    rt = runtime()
    box = await rt.create(options(cmd=["sh"], tty=True), name=unique("main"))
    try:
        session = await box.attach()
        await box.start()
        await session.resize_tty(20, 70)
        await session.stdin().send_input(b"stty size; exit 3\n")
        code, out, _ = await outcome(session)
        assert code == 3
        assert "20 70" in out, out
    finally:
        await rt.remove(box.id, force=True)


async def read_only():
    """A look without input: what the command waits for is still to come, from the next who attaches."""
    rt = runtime()
    box = await rt.create(options(cmd=["sh", "-c", "echo begun; read x; echo $x; exit 2"]), name=unique("main"))
    try:
        await box.start()
        watcher = await box.attach(stdin=False)
        assert watcher.stdin() is None
        async for part in watcher.stdout():
            assert part == "begun\n", part
            break
        message = await refused(box.attach())
        assert "attached" in message, message
    finally:
        await rt.remove(box.id, force=True)


async def interleaved():
    """Twenty commands at once in one box, each with its own output."""
    async with Running() as box:

        async def one(number):
            return await outcome(await box.exec("sh", ["-c", f"echo {number}; exit {number}"]))

        results = await asyncio.gather(*(one(number) for number in range(20)))
        assert results == [(number, f"{number}\n", "") for number in range(20)]


async def metrics():
    """Counters of the runtime and measurements of a box."""
    rt = runtime()
    before = await rt.metrics()
    async with Running() as box:
        assert await outcome(await box.exec("echo", ["hello"])) == (0, "hello\n", "")
        await refused(box.exec("nosuchcommand"))
        after = await rt.metrics()
        assert after.boxes_created_total == before.boxes_created_total + 1
        assert after.num_running_boxes == before.num_running_boxes + 1
        assert after.total_commands_executed == before.total_commands_executed + 1
        assert after.total_exec_errors == before.total_exec_errors + 1
        found = await box.metrics()
        assert (found.commands_executed_total, found.exec_errors_total) == (1, 1)
        assert (found.bytes_sent_total, found.bytes_received_total) == (0, 6)
        assert found.memory_bytes > 0
        assert found.cpu_percent >= 0
        assert found.total_create_duration_ms > 0
        assert found.stage_box_spawn_ms > 0
        assert found.stage_image_prepare_ms is not None
        assert found.guest_boot_duration_ms is None
        await box.stop()
        assert (await box.metrics()).memory_bytes == 0


async def until(holds, what):
    deadline = time.monotonic() + 60
    while not await holds():
        assert time.monotonic() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.1)


async def lifetimes():
    """Only newer generations can ask for these."""
    rt = runtime()

    async def is_stopped(box_id):
        return "stopped" in status(await rt.get_info(box_id))

    box = await rt.create(options(auto_stop=1), name=unique("idle"))
    await box.start()
    await until(lambda: is_stopped(box.id), "an idle box stops")
    assert await outcome(await box.exec("echo", ["back"])) == (0, "back\n", "")
    await rt.remove(box.id, force=True)

    box = await rt.create(options(auto_stop=1, auto_resume=False), name=unique("once"))
    await box.start()
    await until(lambda: is_stopped(box.id), "an idle box stops")
    assert "stopped" in (await refused(box.exec("true"))).lower()
    await rt.remove(box.id, force=True)

    box = await rt.create(options(auto_delete=1), name=unique("brief"))
    await box.start()
    await box.stop()

    async def is_gone():
        return await rt.get(box.id) is None

    await until(is_gone, "a stopped box is removed")


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]]())
