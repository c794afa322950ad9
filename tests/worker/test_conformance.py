"""What a command has and how it ends is the same in boxes of images of all kinds, whoever starts the command."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlencode

import docker
import pytest
from support.sites import Site, collect

from boxlite_server.errors import ExecutionError
from boxlite_server.local import busybox, dockerd
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.docker.exec import ExecProcess
from boxlite_server.worker.runtime import BoxRef
from boxlite_server.worker.supervisor.process import SupervisedProcess

RUNTIMES = ("supervised", "docker")
STATIC_IMAGE = "boxlite-test-static:latest"
NEEDS_PID_1 = ["sh", "-c", "[ $$ = 1 ] || exit 100; exec sleep 1000"]


@dataclass(frozen=True)
class Kind:
    """A running box of an image. `prefix`: what stands before each command. `user`: who runs it."""

    site: Site
    box: BoxRef
    prefix: tuple[str, ...] = ()
    user: str = "0:0"
    home: str = "/root"

    @property
    def is_supervised(self) -> bool:
        return not self.site.runtime.inspect(self.box).supervisor.startswith("none")

    def run(self, *command: str, alone: bool = False, **fields: object) -> tuple[bytes, bytes, int]:
        spec = ExecSpec((*(() if alone else self.prefix), *command), **fields)  # type: ignore[arg-type]
        return collect(self.site.runtime.spawn(self.box, spec))

    def shell(self, script: str, **fields: object) -> tuple[bytes, bytes, int]:
        return self.run("sh", "-c", script, **fields)

    def refusal(self, *command: str, **fields: object) -> str:
        with pytest.raises(ExecutionError) as refused:
            self.site.runtime.spawn(self.box, ExecSpec(command, **fields))  # type: ignore[arg-type]
        return str(refused.value)


@pytest.fixture(scope="module")
def static_image(docker_host: str, api: docker.APIClient) -> Iterator[str]:
    """An image with one static program, /busybox, and nothing else: no shell, no /etc, no /tmp."""
    with tarfile.open(fileobj=io.BytesIO(busybox.archive())) as source:
        program = source.extractfile("bin/busybox")
        assert program is not None
        content = program.read()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("busybox")
        entry.mode, entry.size = 0o755, len(content)
        tar.addfile(entry, io.BytesIO(content))
    name, _, tag = STATIC_IMAGE.rpartition(":")
    changes = f"CMD {json.dumps(['/busybox', 'sleep', '1000'])}"
    query = urlencode({"fromSrc": "-", "repo": name, "tag": tag, "changes": changes})
    dockerd.request(docker_host, "POST", f"/images/create?{query}", archive.getvalue())
    yield STATIC_IMAGE
    api.remove_image(STATIC_IMAGE, force=True)


@pytest.fixture(scope="module", params=["busybox", "static", "user", "init"])
def kind(
    request: pytest.FixtureRequest, site: Site, new_image: Callable[..., str], static_image: str
) -> Iterator[Kind]:
    match request.param:
        case "busybox":
            made = Kind(site, site.running_box())
        case "static":
            made = Kind(site, site.running_box(image=static_image), ("/busybox",), home="/")
        case "user":
            image = new_image(User="box", WorkingDir="/home/box", Env=["PATH=/bin", "GREETING=hello you"])
            made = Kind(site, site.running_box(image=image), user="1000:1000", home="/home/box")
        case _:
            made = Kind(site, site.running_box(image=new_image(Entrypoint=NEEDS_PID_1)))
    yield made
    site.runtime.remove(made.box, force=True)


def test_commands_run_as_the_worker_is_made_to_run_them(kind: Kind) -> None:
    process = kind.site.runtime.spawn(kind.box, ExecSpec((*kind.prefix, "true")))
    assert isinstance(process, SupervisedProcess if kind.is_supervised else ExecProcess)
    assert collect(process) == (b"", b"", 0)


def test_streams_and_exit_code(kind: Kind) -> None:
    assert kind.shell("echo out; echo err >&2; exit 3") == (b"out\n", b"err\n", 3)


@pytest.mark.parametrize(("number", "code"), [(9, 137), (11, 139), (15, 143)])
def test_an_end_by_a_signal(kind: Kind, number: int, code: int) -> None:
    assert kind.shell(f"kill -{number} $$")[2] == code


def test_user_groups_and_home(kind: Kind) -> None:
    assert kind.shell("echo $(id -u):$(id -g) $(id -G) $HOME")[0].decode() == (
        f"{kind.user} {kind.user.partition(':')[2]} {kind.home}\n"
    )


def test_a_user_by_number_needs_no_passwd(kind: Kind) -> None:
    assert kind.shell("echo $(id -u):$(id -g)", user="4711:12")[0] == b"4711:12\n"


def test_the_environment_is_the_images_and_the_commands_own(kind: Kind) -> None:
    out, _, _ = kind.run("env", env={"OWN": "a=b c", "EMPTY": ""})
    found = dict(line.split("=", 1) for line in out.decode().splitlines())
    assert (found["OWN"], found["EMPTY"], found["HOME"]) == ("a=b c", "", kind.home)
    assert "PATH" in found and "HOSTNAME" in found
    assert ("GREETING" in found) == (kind.home == "/home/box")


def test_the_working_directory(kind: Kind) -> None:
    assert kind.run("pwd")[0].decode().strip() == (kind.home if kind.home == "/home/box" else "/")
    assert kind.run("pwd", working_dir="/proc")[0] == b"/proc\n"
    assert "working directory '/no/such' not found" in kind.refusal(*kind.prefix, "true", working_dir="/no/such")


def test_what_cannot_be_executed_is_told_apart(kind: Kind) -> None:
    assert "command 'nosuch' not found in the box" in kind.refusal("nosuch")
    assert "command '/no/such' not found in the box" in kind.refusal("/no/such")
    assert "permission denied" in kind.refusal("/proc/self/status")
    assert "user 'ghost' not found in the box" in kind.refusal(*kind.prefix, "true", user="ghost")


@pytest.mark.parametrize(
    ("content", "text"), [("#!/no/such\n", "not found in the box"), ("\\001\\002 no program", "format error")]
)
def test_a_program_that_no_interpreter_runs(kind: Kind, content: str, text: str) -> None:
    path = "/dev/shm/program"
    if kind.shell(f"printf '{content}' > {path}; chmod 755 {path}; mount | grep '/dev/shm .*noexec'")[2] == 0:
        path = "/program" if kind.user == "0:0" else "/home/box/program"
        assert kind.shell(f"printf '{content}' > {path}; chmod 755 {path}")[2] == 0
    if kind.is_supervised:
        assert text in kind.refusal(path)
    else:  # the engine has told that it runs
        out, err, code = kind.run(path, alone=True)
        assert code != 0
        assert text.replace("not found in the box", "no such file") in (out + err).decode()


def test_the_end_of_input(kind: Kind) -> None:
    process = kind.site.runtime.spawn(kind.box, ExecSpec((*kind.prefix, "cat")))
    assert process.write(b"abc", 60) == 3
    assert process.close_input(60)
    assert collect(process) == (b"abc", b"", 0)


def test_the_end_of_input_on_a_terminal_after_a_part_of_a_line(kind: Kind) -> None:
    script = "stty -echo; echo ready; cat; exit 4"
    process = kind.site.runtime.spawn(kind.box, ExecSpec((*kind.prefix, "sh", "-c", script), tty=True))
    assert process.read() == (1, b"ready\r\n")
    assert process.write(b"abc", 60) == 3
    assert process.close_input(60)
    assert collect(process) == (b"abc", b"", 4)


def test_the_size_of_a_terminal(kind: Kind) -> None:
    """The engine may set it a moment after the start."""
    script = 'until stty size 2>/dev/null | grep -v "^0"; do :; done' if not kind.is_supervised else "stty size"
    assert kind.shell(script, tty=True, cols=132, rows=40)[0] == b"40 132\r\n"


def test_the_memory_limit_is_told(kind: Kind) -> None:
    process = kind.site.runtime.spawn(kind.box, ExecSpec((*kind.prefix, "tail", "/dev/zero")))
    assert collect(process)[2] == 137
    assert process.memory_limit_hit == 64


def test_a_killed_command_leaves_nothing_and_an_ended_one_what_it_likes(kind: Kind) -> None:
    prefix = " ".join(kind.prefix)
    script = f"{prefix} setsid {prefix} sleep 13579 & echo up; {prefix} sleep 13579"
    process = kind.site.runtime.spawn(kind.box, ExecSpec((*kind.prefix, "sh", "-c", script)))
    assert process.read() == (1, b"up\n")
    process.kill()
    assert collect(process)[2] == 137
    assert b"sleep 13579" not in kind.run("ps")[0]
    assert kind.shell(f"{prefix} setsid {prefix} sleep 24680 & exit 0")[2] == 0
    assert b"sleep 24680" in kind.run("ps")[0]
