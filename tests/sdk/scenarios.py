"""What users do with the released SDK, in every generation alike: `python scenarios.py NAME IMAGE`.

Run by the Python that has the SDK, with the cluster in the environment. It ends with exit code 0, or with
the assertion that failed. Each coroutine without parameters is a scenario; `since` marks what only newer
SDKs have.
"""

import asyncio
import hashlib
import os
import pathlib
import sys
import tempfile
import time
import uuid

import boxlite
from boxlite import Boxlite, BoxliteRestOptions, BoxOptions, CodeBox, CopyOptions, NetworkSpec, SimpleBox

IMAGE = sys.argv[2] if len(sys.argv) > 2 else "alpine:latest"
FLAT = hasattr(CopyOptions(), "include_parent")  # generations that send a directory without its own name


def since(version):
    """The first release that has what the scenario needs; read by the tests, in the source."""
    return lambda scenario: scenario


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


async def raised(kind, awaitable):
    """It must raise exactly this class."""
    try:
        await awaitable
    except Exception as exc:
        assert type(exc) is kind, (kind, type(exc), exc)
        return
    raise AssertionError(f"no {kind.__name__}")


def status(info):
    state = getattr(info, "state", None)
    return str(getattr(state, "status", state)).lower()


async def lifecycle():
    rt, name = runtime(), unique("web")
    box = await rt.create(options(disk_size_gb=10), name=name)  # as the SDK's own SkillBox has it
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
        # Of the command itself, so that it has the terminal when the key comes.
        await keys.send_input(b"sh -c 'echo $((8*9)); exec sleep 600'\n")
        await until("72")
        await keys.send_input(b"\x03")
        await keys.send_input(b"echo $((7*8))\n")
        await until("56")
        await keys.send_input(b"exit 5\n")
        assert (await execution.wait()).exit_code == 5


async def lost_connection():
    """The way to the server is cut in the middle; the SDK comes back by itself, after 15 seconds."""
    async with Running() as box:
        script = "for i in 0 1 2 3 4 5 6 7 8 9; do echo line $i; sleep 0.5; done; exit 5"
        code, out, _ = await outcome(await box.exec("sh", ["-c", script]))
        assert (code, out) == (5, "".join(f"line {i}\n" for i in range(10))), (code, out)


@since("0.10.0")
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


@since("0.10.0")
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


@since("0.10.8")
async def read_only():
    """A look without input: what the command waits for is still to come, from the next who attaches."""
    rt = runtime()
    box = await rt.create(options(cmd=["sh", "-c", "echo begun; read x; echo $x; exit 2"]), name=unique("main"))
    try:
        await box.start()
        watcher = await box.attach(stdin=False)
        assert "not available" in await refused(asyncio.to_thread(watcher.stdin))
        async for part in watcher.stdout():
            assert part == "begun\n", part
            break
        message = await refused(box.attach())
        assert "attached" in message, message
    finally:
        await rt.remove(box.id, force=True)


async def get_or_create():
    rt, name = runtime(), unique("shared")
    box, created = await rt.get_or_create(options(), name=name)
    try:
        again, created_again = await rt.get_or_create(options(), name=name)
        assert (created, created_again) == (True, False)
        assert again.id == box.id
        await box.start()
        assert await outcome(await again.exec("hostname")) == (0, f"{name}\n", "")
    finally:
        await rt.remove(name, force=True)
    other, created = await rt.get_or_create(options(), name=name)
    assert created
    assert other.id != box.id
    await rt.remove(other.id)


async def network():
    """A box has loopback alone, or more than that."""
    for mode in ("disabled", "enabled"):
        async with Running(network=NetworkSpec(mode=mode)) as box:
            code, out, _ = await outcome(await box.exec("ls", ["/sys/class/net"]))
            assert code == 0
            assert (out.split() == ["lo"]) == (mode == "disabled"), (mode, out)
    if hasattr(boxlite, "OutboundNetworkSpec"):
        policy = NetworkSpec(outbound=boxlite.OutboundNetworkSpec(mode="disabled"))
        async with Running(network=policy) as box:
            assert await outcome(await box.exec("ls", ["/sys/class/net"])) == (0, "lo\n", "")


async def simple_box():
    """The helper that most people use: it creates, starts, runs to the end, and stops."""
    rt, name = runtime(), unique("simple")
    async with SimpleBox(image=IMAGE, memory_mib=128, runtime=rt, name=name, env=[("WHO", "me")]) as box:
        result = await box.exec("sh", "-c", "echo out $WHO; echo err >&2; exit 4")
        assert (result.exit_code, result.stdout, result.stderr) == (4, "out me\n", "err\n"), result
        result = await box.exec("sh", "-c", "echo $X; pwd", env={"X": "y"}, cwd="/tmp")
        assert (result.exit_code, result.stdout) == (0, "y\n/tmp\n"), result
        result = await box.exec("sleep", "600", timeout=1.0)
        assert result.exit_code != 0
        assert "running" in status(await rt.get_info(name))
        box_id = box.id
    left = await rt.get_info(name)
    if "auto_remove" in sys.argv[3:]:
        assert left is None
    else:
        assert left.id == box_id
        assert "stopped" in status(left)
        async with SimpleBox(image=IMAGE, runtime=rt, name=name, reuse_existing=True) as box:
            assert box.id == box_id
            assert not box.created
        await rt.remove(name, force=True)


async def code_box():
    """Runs what the image has as Python; the test's image has a stand-in."""
    rt, name = runtime(), unique("code")
    async with CodeBox(image=IMAGE, memory_mib=128, runtime=rt, name=name) as box:
        install = "mkdir -p /usr/local/bin; printf '#!/bin/sh\\necho ran: $2\\n' > $0; chmod +x $0"
        result = await box.exec("sh", "-c", install, "/usr/local/bin/python")
        assert result.exit_code == 0, result
        assert await box.run("print(1 + 1)") == "ran: print(1 + 1)\n"
    if "auto_remove" not in sys.argv[3:]:
        await rt.remove(name, force=True)


async def many_boxes():
    """SDKs ask for a list without paging and expect all of it."""
    rt = runtime()
    boxes = await asyncio.gather(*(rt.create(options(), name=unique(f"many-{n}")) for n in range(25)))
    try:
        listed = {info.id: info for info in await rt.list_info()}
        for box in boxes:
            info = listed[box.id]
            assert (info.name, info.image, info.cpus, info.memory_mib) == (box.name, IMAGE, 1, 128)
            assert "configured" in status(info)
            assert str(info.created_at).startswith(("20", "21")), info.created_at
    finally:
        await asyncio.gather(*(rt.remove(box.id, force=True) for box in boxes))
    assert not {box.id for box in boxes} & {info.id for info in await rt.list_info()}


async def handle_after_stop():
    """A handle outlives the container's run: the next command starts the box again, with its disk."""
    async with Running() as box:
        assert (await outcome(await box.exec("sh", ["-c", "echo kept > /root/file"])))[0] == 0
        await box.stop()
        await box.stop()
        assert await outcome(await box.exec("cat", ["/root/file"])) == (0, "kept\n", "")
        assert "running" in status(await runtime().get_info(box.id))


async def handle_after_remove():
    rt = runtime()
    box = await rt.create(options(), name=unique("gone"))
    await box.start()
    execution = await box.exec("sleep", ["600"])
    await rt.remove(box.id, force=True)
    assert "not found" in await refused(box.exec("true"))
    assert "not found" in await refused(box.start())
    assert "not found" in await refused(rt.remove(box.id))
    # Its command ended with it; the streams must say so, and not hang.
    assert (await outcome(execution))[0] != 0


async def binary_output():
    """Bytes that are no text, and characters that are cut in two by the pipe."""
    async with Running() as box:
        code, out, _ = await outcome(
            await box.exec("sh", ["-c", "printf 'a\\377b\\303'; sleep 0.3; printf '\\251\\n'"])
        )
        assert (code, out) == (0, "a\ufffdb\u00e9\n"), (code, out)


@since("0.9.4")
async def signal():
    async with Running() as box:
        script = "trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 0.1; done"
        execution = await box.exec("sh", ["-c", script])
        out = execution.stdout()
        assert "ready" in str(await anext(aiter(out)))
        await execution.signal(15)
        assert "term" in await text(out)
        assert (await execution.wait()).exit_code == 5


@since("0.10.0")
async def no_resume():
    """A box that does not resume by itself says that it is stopped."""
    async with Running(auto_resume=False) as box:
        await box.stop()
        assert "stopped" in await refused(box.exec("true"))
        await box.start()
        assert await outcome(await box.exec("echo", ["up"])) == (0, "up\n", "")


@since("0.10.8")
async def no_room_left():
    """A stopped box gives its room away, and cannot start while another has it."""
    rt, names = runtime(), [unique("first"), unique("second")]
    most_of_it = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 6 // 10 // 2**20
    try:
        first = await rt.create(options(memory_mib=most_of_it), name=names[0])
        await first.start()
        await first.stop()
        await rt.create(options(memory_mib=most_of_it), name=names[1])
        await raised(boxlite.ResourceExhaustedError, first.start())
        await rt.remove(names[1], force=True)
        await first.start()
    finally:
        for name in names:
            if await rt.get_info(name):
                await rt.remove(name, force=True)


@since("0.10.8")
async def error_classes():
    rt, name = runtime(), unique("errors")
    box = await rt.create(options(auto_resume=False), name=name)
    try:
        await raised(boxlite.AlreadyExistsError, rt.create(options(), name=name))
        await raised(boxlite.InvalidArgumentError, rt.create(options(), name="no/good"))
        await raised(boxlite.ImageError, rt.create(options(image="127.0.0.1:9/nosuch:never")))
        await raised(boxlite.UpstreamUnavailableError, rt.create(options(memory_mib=1048576)))
        await raised(boxlite.ExecutionError, box.exec("nosuchcommand"))
        await raised(boxlite.InvalidStateError, rt.remove(name))
        await box.stop()
        await raised(boxlite.StoppedError, box.exec("true"))
        await raised(boxlite.NotFoundError, rt.remove("nosuch"))
        await raised(boxlite.UnsupportedError, box.network.tunnel(8080))
    finally:
        await rt.remove(name, force=True)
    wrong = BoxliteRestOptions(url=BoxliteRestOptions.from_env().url, credential=boxlite.ApiKeyCredential("wrong"))
    if "locked" in sys.argv[3:]:
        await raised(boxlite.ConfigError, Boxlite.rest(wrong).list_info())


async def interleaved():
    """Twenty commands at once in one box, each with its own output."""
    async with Running() as box:

        async def one(number):
            return await outcome(await box.exec("sh", ["-c", f"echo {number}; exit {number}"]))

        results = await asyncio.gather(*(one(number) for number in range(20)))
        assert results == [(number, f"{number}\n", "") for number in range(20)]


@since("0.10.8")
async def volumes():
    """What 0.10 has of volumes: a box mounts one by its name, and what it writes stays."""
    rt, name = runtime(), unique("data")
    made = await rt.volumes.create(name)
    try:
        assert (made.name, len(made.id), made.size_bytes) == (name, 12, None)
        unnamed = await rt.volumes.create()
        assert unnamed.name == unnamed.id
        assert {made.id, unnamed.id} <= {one.id for one in await rt.volumes.list()}
        await rt.volumes.remove(unnamed.id)
        assert (await rt.volumes.get(made.id)).name == name
        assert "exists" in await refused(rt.volumes.create(name))
        for mounted, script, expected in ((name, "echo kept > /data/file", ""), (made.id, "cat /data/file", "kept\n")):
            async with Running(volumes=[{"managed_volume": mounted, "guest_path": "/data"}]) as box:
                assert await outcome(await box.exec("sh", ["-c", script])) == (0, expected, "")
                assert "in use" in await refused(rt.volumes.remove(made.id))
        nosuch = [{"managed_volume": "nosuch", "guest_path": "/data"}]
        assert "nosuch" in await refused(rt.create(options(volumes=nosuch)))
    finally:
        await rt.volumes.remove(made.id)
    await rt.volumes.remove(made.id, force=True)
    assert "not found" in await refused(rt.volumes.remove(made.id))


@since("0.10.8")
async def images():
    """What 0.10 has of images."""
    rt = runtime()
    repository, _, tag = IMAGE.rpartition(":")
    found = [one for one in await rt.images.list() if one.reference == f"docker.io/library/{IMAGE}"]
    assert len(found) == 1
    assert (found[0].repository, found[0].tag) == (f"docker.io/library/{repository}", tag)
    assert found[0].size_bytes > 0
    detail = await rt.images.get(repository)
    assert detail.name == f"docker.io/library/{repository}"
    assert found[0].id in [version.digest for version in detail.versions]
    usage = await rt.images.usage()
    assert 0 < usage.count <= usage.limit
    assert usage.known_bytes > 0
    assert "not found" in await refused(rt.images.get("nosuch"))
    assert "aliases" in await refused(rt.images.create_alias(repository, "b", "sha256:" + "0" * 64))
    async with Running():
        assert "in use" in await refused(rt.images.remove(repository))


@since("0.10.8")
async def capabilities():
    """0.10 asks the server first whether it can."""
    from boxlite import AdvancedBoxOptions, ContainerCapabilities

    some = AdvancedBoxOptions(capabilities=ContainerCapabilities(add=["CHOWN"], drop=["ALL"]))
    async with Running(advanced=some) as box:
        code, out, _ = await outcome(await box.exec("grep", ["CapEff", "/proc/self/status"]))
        assert (code, out.split()[1]) == (0, "0000000000000001"), out
    much = AdvancedBoxOptions(capabilities=ContainerCapabilities(add=["SYS_ADMIN"]))
    assert "--allow-cap" in await refused(runtime().create(options(advanced=much)))


async def shell(box, script):
    code, out, err = await outcome(await box.exec("sh", ["-c", script]))
    assert code == 0, err
    return out


def source_tree():
    """A directory `src` with files, a directory and an empty one, as the client's side has it."""
    root = pathlib.Path(tempfile.mkdtemp())
    (root / "src" / "sub" / "empty").mkdir(parents=True)
    (root / "src" / "x").write_text("content of x")
    (root / "src" / "x").chmod(0o640)
    (root / "src" / "sub" / "y").write_bytes(bytes(range(256)) * 5000)
    return root


def listing(root):
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


async def copy_files():
    """A file as a path, over one that exists, into a directory; and back."""
    here = source_tree()
    async with Running() as box:
        await box.copy_in(str(here / "src" / "x"), "/root/made/b.txt")
        assert await shell(box, "cat /root/made/b.txt; stat -c %a /root/made/b.txt") == "content of x640\n"
        await box.copy_in(str(here / "src" / "sub" / "y"), "/root/made/b.txt")
        assert await shell(box, "wc -c < /root/made/b.txt") == "1280000\n"
        await box.copy_in(str(here / "src" / "x"), "/root/made")
        await box.copy_in(str(here / "src" / "x"), "/root/new/")
        assert await shell(box, "cat /root/made/x /root/new/x") == "content of x" * 2
        assert await copied_out(box, "/root/made/b.txt", here) == (here / "src" / "sub" / "y").read_bytes()
        if not FLAT:  # between the two, a directory that exists is a failure of the client
            (here / "out").mkdir()
            await box.copy_out("/root/made/b.txt", str(here / "out"))
            assert (here / "out" / "b.txt").read_bytes() == (here / "src" / "sub" / "y").read_bytes()


async def copied_out(box, path, here):
    """The content of a file in the box; the oldest generation puts it into a directory."""
    await box.copy_out(path, str(here / "as"))
    return (here / "as" / pathlib.Path(path).name if (here / "as").is_dir() else here / "as").read_bytes()


async def copy_directories():
    """A directory there and back, one file in it, nothing in it, into one that exists."""
    here = source_tree()
    top = "" if FLAT else "/src"  # the name goes along in the later generations
    async with Running() as box:
        await box.copy_in(str(here / "src"), "/root/d")
        assert (
            await shell(box, f"cat /root/d{top}/x; ls -d /root/d{top}/sub/empty")
            == f"content of x/root/d{top}/sub/empty\n"
        )
        await box.copy_out(f"/root/d{top}", str(here / "back"))
        name = "d" if FLAT else "src"
        assert listing(here / "back" / name) == listing(here / "src")
        for name, files in (("one", ["only"]), ("none", [])):
            (here / name).mkdir()
            for file in files:
                (here / name / file).write_text("1")
            await box.copy_in(str(here / name), f"/root/{name}")
            await box.copy_out(f"/root/{name}" + ("" if FLAT else f"/{name}"), str(here / "again"))
            assert sorted(listing(here / "again" / name)) == files, listing(here / "again")
        await shell(box, "mkdir -p /root/there/sub; echo kept > /root/there/kept; chmod 1777 /root/there")
        await box.copy_in(str(here / "src"), "/root/there")
        assert "kept" in await shell(box, f"cat /root/there/kept; ls /root/there{top}/sub/y")
        assert await shell(box, "stat -c %a /root/there") == "1777\n"


async def copy_holes_and_pipes():
    """Files with holes, which the client packs as sparse ones, and a pipe among files."""
    here = source_tree()
    with (here / "src" / "holes").open("wb") as file:
        file.truncate(10 << 20)
        file.seek(5 << 20)
        file.write(b"middle")
        file.seek(0, 2)
        file.write(b"end\n")
    expected = hashlib.sha256((here / "src" / "holes").read_bytes()).hexdigest()
    top = "" if FLAT else "/src"
    async with Running() as box:
        await box.copy_in(str(here / "src" / "holes"), "/root/alone")
        os.mkfifo(here / "src" / "pipe")
        await box.copy_in(str(here / "src"), "/root/d")
        found = await shell(box, f"sha256sum /root/alone /root/d{top}/holes; cat /root/d{top}/x; ls /root/d{top}")
        assert found.split() == [
            *(expected, "/root/alone", expected, f"/root/d{top}/holes"),
            *("content", "of", "xholes", "sub", "x"),
        ], found
        assert hashlib.sha256(await copied_out(box, "/root/alone", here)).hexdigest() == expected


async def copy_out_of_links():
    """A link stands for what it leads to; links in a directory stay links."""
    here = source_tree()
    async with Running() as box:
        await shell(box, "mkdir -p /root/d/sub; echo content > /root/d/f; ln -s d/f /root/hop; ln -s /root/hop /root/l")
        await shell(
            box, "ln -s d /root/dl; ln -s /etc/passwd /root/d/away; ln -s f /root/d/near; ln -s no /root/broken"
        )
        assert await copied_out(box, "/root/l", here) == b"content\n"
        await box.copy_out("/root/dl", str(here / "back"))
        back = here / "back" / "dl"
        assert sorted(path.name for path in back.iterdir()) == ["away", "f", "near", "sub"], list(back.iterdir())
        assert [str((back / name).readlink()) for name in ("away", "near")] == ["/etc/passwd", "f"]
        message = await refused(box.copy_out("/root/broken", str(here / "out")))
        assert "/root/broken: it is a link to /root/no, which does not exist" in message, message
        await shell(box, "ln -s b /root/a; ln -s a /root/b")
        message = await refused(box.copy_out("/root/a", str(here / "out")))
        assert "circle" in message, message


async def copy_refusals():
    here = source_tree()
    async with Running() as box:
        message = await refused(box.copy_out("/root/nosuch", str(here / "out")))
        assert "no such file or directory in the box: /root/nosuch" in message, message
        message = await refused(box.copy_in(str(here / "src" / "x"), "/proc/x"))
        assert "nothing can be copied" in message, message
        if not FLAT:  # that generation drops the option, and others refuse it before they ask
            assert await refused(box.copy_in(str(here / "src" / "x"), "/root/x", CopyOptions(overwrite=False)))


async def copy_while_stopped():
    here, rt = source_tree(), runtime()
    box = await rt.create(options(), name=unique("rest"))
    try:
        await box.copy_in(str(here / "src" / "x"), "/root/x")
        assert "configured" in status(await rt.get_info(box.id))
        await box.start()
        assert await shell(box, "cat /root/x") == "content of x"
        await box.stop()
        assert await copied_out(box, "/root/x", here) == b"content of x"
        assert "stopped" in status(await rt.get_info(box.id))
    finally:
        await rt.remove(box.id, force=True)


async def copy_as_user():
    """What is copied in belongs to the box's user."""
    here = source_tree()
    async with Running(user="box") as box:
        await box.copy_in(str(here / "src"), "/home/box/made/d")
        assert await shell(box, "find /home/box/made | xargs stat -c %U:%G | sort -u") == "box:box\n"
        assert await shell(box, "echo more > /home/box/made/d/more; ls /home/box/made/d/more")


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


@since("0.10.0")
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


async def snapshots():
    rt = runtime()
    async with Running() as box:
        assert await box.snapshot.list() == []
        assert await box.snapshot.get("nosuch") is None
        await (await box.exec("sh", ["-c", "echo one > /file"])).wait()
        made = await box.snapshot.create(name="first try")
        assert (made.name, made.box_id) == ("first try", box.id)
        assert 0 < made.container_disk_bytes < made.size_bytes
        assert abs(made.created_at - time.time()) < 60, made.created_at
        assert "exists" in await refused(box.snapshot.create(name="first try"))
        await (await box.exec("sh", ["-c", "echo two > /file"])).wait()
        assert "running" in await refused(box.snapshot.restore("first try"))
        await box.stop()
        await box.snapshot.create(name="second")
        assert [one.name for one in await box.snapshot.list()] == ["first try", "second"]
        assert (await box.snapshot.get("first try")).id == made.id
        await box.snapshot.restore("first try")
        again = await rt.get(box.id)
        assert again.id == box.id
        await again.start()
        assert await outcome(await again.exec("cat", ["/file"])) == (0, "one\n", "")
        await again.snapshot.remove("first try")
        assert [one.name for one in await again.snapshot.list()] == ["second"]
        assert "nosuch" in await refused(again.snapshot.restore("nosuch"))


async def clone():
    rt = runtime()
    async with Running() as box:
        await (await box.exec("sh", ["-c", "echo one > /file"])).wait()
        name = unique("copy")
        copy = await box.clone_box(name=name)
        nameless = await box.clone_box()
        try:
            assert len({box.id, copy.id, nameless.id}) == 3
            assert (await rt.get(name)).id == copy.id
            assert await outcome(await copy.exec("cat", ["/file"])) == (0, "one\n", "")
        finally:
            await rt.remove(copy.id, force=True)
            await rt.remove(nameless.id, force=True)


async def archives():
    rt = runtime()
    with tempfile.TemporaryDirectory() as directory:
        async with Running(env=[("A", "b c")]) as box:
            await (await box.exec("sh", ["-c", "echo one > /file"])).wait()
            written = await box.export(dest=directory)
        name = unique("back")
        copy = await rt.import_box(str(written), name=name)
        try:
            assert (await rt.get(name)).id == copy.id
            assert await outcome(await copy.exec("sh", ["-c", "cat /file; echo $A"])) == (0, "one\nb c\n", "")
        finally:
            await rt.remove(copy.id, force=True)
        message = await refused(rt.import_box(__file__))
        assert "archive" in message, message


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]]())
