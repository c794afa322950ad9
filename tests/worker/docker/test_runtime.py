"""What only the runtime on Docker Engine can show."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
from support.cluster import wait_until
from support.sites import Site, collect, in_thread

from boxlite_server import ids
from boxlite_server.errors import EngineError, InvalidArgumentError, InvalidStateError, NotFoundError, UnsupportedError
from boxlite_server.worker.commands import ExecSpec
from boxlite_server.worker.docker import engine, exec, stats
from boxlite_server.worker.docker.labels import WORKER_LABEL, container_name
from boxlite_server.worker.docker.runtime import DockerRuntime
from boxlite_server.worker.docker.storage import images as docker_images
from boxlite_server.worker.runtime import BoxRef, BoxStatus, Owner

UNKNOWN = "the engine or the registry gave it up; the log of the worker says why"


def run(site: Site, box: BoxRef, *command: str, **fields: Any) -> bytes:
    return collect(site.runtime.spawn(box, ExecSpec(command, **fields)))[0]


def name(box: BoxRef) -> str:
    return f"boxlite-{box.box_id}-{box.generation}"


def test_the_spec_reaches_the_container(site: Site, api: docker.APIClient) -> None:
    box = site.running_box(cpus=1, memory_mib=64, env={"A": "b"}, working_dir="/made/up", user="box", hostname="web")
    assert run(site, box, "sh", "-c", "id -un; pwd; hostname; ls /sys/class/net") == b"box\n/made/up\nweb\nlo\n"
    host = api.inspect_container(name(box))["HostConfig"]
    assert host["CpuQuota"] == host["CpuPeriod"]
    assert host["Memory"] == host["MemorySwap"] == 64 * 1024 * 1024
    assert host["PidsLimit"] == 512
    assert host["Init"] is True
    site.runtime.remove(box, force=True)


def test_a_box_that_a_former_process_had_made_at_the_last_moment_is_found(site: Site, docker_host: str) -> None:
    site.runtime.remove(site.new_box(), force=True)  # and so this process knows what boxes there are
    box = BoxRef(ids.new_id(), 1)
    with closing(DockerRuntime(lambda: site.owner, docker_host)) as former:
        former.create(box, site.spec())
        former.start(box)
    assert site.runtime.create(box, site.spec()).status is BoxStatus.RUNNING
    site.runtime.remove(box, force=True)
    stranger = Owner(ids.new_id(), ids.new_id())
    with closing(DockerRuntime(lambda: stranger, docker_host)) as other:
        other.create(box, site.spec())
        with pytest.raises(InvalidStateError, match="already in use"):
            site.runtime.create(box, site.spec())
        other.remove(box, force=True)


def test_a_clone_asks_for_nothing_twice(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(site.runtime, DockerRuntime)
    calls: list[str] = []
    client = site.runtime._engine.api
    send = client.send

    def noted(request: Any, **how: Any) -> Any:
        path = request.url.partition("?")[0].rpartition("/v")[2]
        calls.append(f"{request.method} {path.partition('/')[2]}")
        return send(request, **how)

    site.runtime.remove(site.new_box(), force=True)  # what does not change is asked once in the life of a worker
    monkeypatch.setattr(client, "send", noted)
    box = site.new_box()
    calls.clear()
    site.runtime.disks.clone(box, copy := BoxRef(ids.new_id(), 1), site.spec())
    assert [call for call in calls if call.startswith("POST")] == ["POST commit", "POST containers/create"]
    assert len(calls) == 6
    for ref in (box, copy):
        site.runtime.remove(ref, force=True)


def test_shared_memory_is_half_of_the_boxs_memory(site: Site) -> None:
    box = site.running_box(memory_mib=256)
    output, _, code = collect(site.runtime.spawn(box, ExecSpec(("df", "-m", "/dev/shm"))))
    site.runtime.remove(box, force=True)
    assert code == 0
    assert output.splitlines()[1].split()[1] == b"128"


def test_network(site: Site) -> None:
    box = site.running_box(network_enabled=True)
    assert b"eth0" in run(site, box, "ls", "/sys/class/net")
    site.runtime.remove(box, force=True)


def test_an_unknown_user_of_the_box_is_refused(site: Site) -> None:
    box = site.new_box(user="ghost")
    with pytest.raises(InvalidArgumentError, match="unable to find user ghost"):
        site.runtime.start(box)
    state = site.runtime.inspect(box)
    assert state.status is BoxStatus.FAILED
    assert state.exit_code
    site.runtime.remove(box, force=False)


def test_a_relative_working_directory_is_refused(site: Site) -> None:
    with pytest.raises(InvalidArgumentError, match="absolute path"):
        site.new_box(working_dir="relative")


def test_a_paused_box(site: Site, api: docker.APIClient) -> None:
    box = site.running_box()
    api.pause(name(box))
    assert site.runtime.inspect(box).status is BoxStatus.PAUSED
    for verb in (
        lambda: site.runtime.spawn(box, ExecSpec(("true",))),
        lambda: site.runtime.attach_main(box),
        lambda: site.runtime.start(box),
    ):
        with pytest.raises(InvalidStateError, match="paused"):
            verb()
    assert site.runtime.stop(box, 1).status is BoxStatus.STOPPED
    site.runtime.remove(box, force=False)


def test_containers_of_others_are_neither_seen_nor_touched(site: Site, docker_host: str) -> None:
    box = site.running_box()
    for owner in (Owner(ids.new_id(), ids.new_id()), Owner("", "")):
        stranger = DockerRuntime(lambda owner=owner: owner, docker_host)  # type: ignore[misc]
        assert stranger.list_boxes() == []
        for verb in (stranger.inspect, stranger.start, lambda box, of=stranger: of.stop(box, 0)):
            with pytest.raises(NotFoundError):
                verb(box)
        stranger.remove(box, force=True)
        with pytest.raises(InvalidStateError):
            stranger.create(box, site.spec())
        stranger.close()
    assert site.runtime.inspect(box).status is BoxStatus.RUNNING
    site.runtime.remove(box, force=True)


def test_a_container_that_vanishes_by_other_hands(site: Site, api: docker.APIClient) -> None:
    box = site.running_box()
    process = site.runtime.spawn(box, ExecSpec(("sleep", "1000")))
    main = site.runtime.attach_main(box)
    api.remove_container(name(box), force=True)
    assert collect(process)[2] == 137
    assert collect(main)[2] == 137
    assert site.runtime.list_boxes() == []
    site.runtime.remove(box, force=False)


def test_signals_of_a_worker_without_root_go_through_the_box(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError

    monkeypatch.setattr(exec.signal, "pidfd_send_signal", refuse)
    box = site.running_box(user="box")
    # As in a slim image, `kill` is a builtin of the shell alone.
    assert collect(site.runtime.spawn(box, ExecSpec(("rm", "/bin/kill"), user="0")))[2] == 0
    process = site.runtime.spawn(box, ExecSpec(("sleep", "1000")))
    process.signal(signal.SIGTERM)
    assert collect(process)[2] == 143
    process = site.runtime.spawn(box, ExecSpec(("sh", "-c", "setsid sleep 1000 & sleep 1000 & wait")))
    process.kill()
    assert collect(process)[2] == 137
    sleeping = site.runtime.spawn(box, ExecSpec(("sh", "-c", "ps -o args | grep -c '[s]leep 1000'")))
    assert collect(sleeping)[0] == b"0\n"
    # Without a shell there are no means at all.
    process = site.runtime.spawn(box, ExecSpec(("sleep", "1000")))
    assert collect(site.runtime.spawn(box, ExecSpec(("rm", "/bin/sh"), user="0")))[2] == 0
    for attempt in (process.kill, lambda: process.signal(signal.SIGTERM)):
        with pytest.raises(UnsupportedError, match="no `sh`"):
            attempt()
    site.runtime.remove(box, force=True)


def test_a_pid_that_is_not_in_the_container_is_never_signalled(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    box = site.running_box()
    process = site.runtime.spawn(box, ExecSpec(("sleep", "1000")))
    assert isinstance(process, exec.ExecProcess)
    # As with an engine on another host: the pid means somebody else here.
    with monkeypatch.context() as patch:
        patch.setattr(process, "_live_pid", os.getpid)
        with pytest.raises(Exception, match="own host"):
            process.signal(signal.SIGTERM)
    process.kill()
    assert collect(process)[2] == 137
    site.runtime.remove(box, force=True)


class EmptyApi:
    """An engine without images."""

    def inspect_image(self, reference: str) -> dict[str, str]:
        raise NotFoundError(f"no such image: {reference}")


def test_of_many_pulls_of_one_image_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    release, joined, calls = threading.Event(), threading.Semaphore(0), []
    waiting: set[int] = set()

    class Api(EmptyApi):
        def pull(self, reference: str, tag: str, stream: bool, decode: bool) -> list[dict[str, str]]:
            calls.append(reference)
            assert release.wait(60)
            return [{"status": "pulling"}, {"error": "out of luck"}]

    class CountedFuture(Future[None]):
        def result(self, timeout: float | None = None) -> None:
            if threading.get_ident() not in waiting:
                waiting.add(threading.get_ident())
                joined.release()
            return super().result(timeout)

    monkeypatch.setattr(engine.Engine, "api", Api())
    monkeypatch.setattr(docker_images, "Future", CountedFuture)
    images = DockerRuntime(lambda: Owner("c", "w"), "unix:///nowhere").images
    with ThreadPoolExecutor(5) as pool:
        pulls = [pool.submit(lambda: list(images.pull("some:image"))) for _ in range(5)]
        for _ in pulls:
            assert joined.acquire(timeout=60)
        release.set()
        for pull in pulls:
            assert str(pull.exception(10)) == "image 'docker.io/library/some:image' cannot be pulled: " + UNKNOWN
    assert calls == ["docker.io/library/some"]


def test_closing_the_engine_frees_those_who_wait_for_a_pull(monkeypatch: pytest.MonkeyPatch) -> None:
    images = DockerRuntime(lambda: Owner("c", "w"), "unix:///nowhere").images
    began, release = threading.Event(), threading.Event()

    class Api(EmptyApi):
        def pull(self, reference: str, tag: str, stream: bool, decode: bool) -> list[dict[str, str]]:
            began.set()
            release.wait(60)
            return []

    monkeypatch.setattr(engine.Engine, "api", Api())
    failures: list[Exception] = []

    def pull() -> None:
        try:
            list(images.pull("some:image"))
        except EngineError as exc:
            failures.append(exc)

    thread = threading.Thread(target=pull)
    thread.start()
    assert began.wait(60)
    images.close()
    thread.join(60)
    assert len(failures) == 1
    release.set()


def test_an_engine_that_is_not_there(tmp_path: Path) -> None:
    runtime = DockerRuntime(lambda: Owner("c", "w"), f"unix://{tmp_path}/none.sock")
    for verb in (runtime.ping, runtime.capacity, runtime.list_boxes):
        with pytest.raises(EngineError, match="does not answer"):
            verb()
    runtime.close()


def test_an_engine_on_another_host_is_refused() -> None:
    for url in ("ssh://there", "https://there:2376"):
        with pytest.raises(EngineError, match="on the worker's host"):
            DockerRuntime(lambda: Owner("c", "w"), url).ping()


def test_a_main_command_without_memory_is_killed(site: Site) -> None:
    box = site.new_box(memory_mib=16, cmd=("tail", "/dev/zero"))
    process = site.runtime.attach_main(box)
    site.runtime.start(box)
    process.read()
    assert process.wait() == 137
    process.close()
    state = site.runtime.inspect(box)
    assert (state.status, state.exit_code) == (BoxStatus.STOPPED, 137)
    site.runtime.remove(box, force=False)


def test_cpu_and_network_are_measured(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    box = site.running_box(network_enabled=True)
    busy = site.runtime.spawn(box, ExecSpec(("sh", "-c", "while :; do :; done")))
    first = site.runtime.measure(box)
    assert site.runtime.measure(box) == first  # the engine would have us wait for a second one
    monkeypatch.setattr(stats, "SAMPLE_SECONDS", 0)
    wait_until(lambda: 1 < (site.runtime.measure(box).cpu_percent or 0) < 1000, "the loop has had its share of a cpu")
    usage = site.runtime.measure(box)
    assert usage.network_bytes_sent is not None
    assert usage.network_bytes_received is not None
    busy.kill()
    busy.close()
    site.runtime.remove(box, force=True)


class TestWithoutTheConnection:
    """Commands of a former process of which nobody has kept the connection."""

    def test_a_silent_command_is_found_with_its_exit_code(self, site: Site, docker_host: str) -> None:
        box = site.running_box()
        with another(site, docker_host) as runtime:
            process = site.runtime.spawn(box, ExecSpec(("sh", "-c", "until test -e /go; do sleep 0.02; done; exit 7")))
            found = runtime.readopt(box, process.handle)
            process.close()
            with pytest.raises(UnsupportedError, match="no more input"):
                found.write(b"x", 1)
            found.close_input(60)
            run(site, box, "touch", "/go")
            assert collect(found) == (b"", b"", 7)
            assert not found.lost
        site.runtime.remove(box, force=True)

    def test_of_a_command_that_speaks_the_exit_code_is_kept_or_told_lost(self, site: Site, docker_host: str) -> None:
        box = site.running_box()
        with another(site, docker_host) as runtime:
            script = "until test -e /go; do echo x; echo x >> /said; sleep 0.02; done; exit 7"
            process = site.runtime.spawn(box, ExecSpec(("sh", "-c", script)))
            found = runtime.readopt(box, process.handle)
            process.close()
            run(site, box, "sh", "-c", "rm /said; until test -e /said; do sleep 0.02; done; sleep 0.1; touch /go")
            code = collect(found)[2]
            # Newer engines read on, and lose nothing.
            assert (code, found.lost) == (7, "") or "spoke while its worker was restarted" in found.lost
        site.runtime.remove(box, force=True)

    def test_the_end_is_heard(self, site: Site, docker_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The end is reported long before the next look at the engine."""
        box, watching, stopping = site.running_box(), threading.Event(), threading.Event()
        with another(site, docker_host) as runtime:
            in_thread(lambda: runtime.watch(watching.set, stopping))
            assert watching.wait(60)
            process = site.runtime.spawn(box, ExecSpec(("sleep", "1000")))
            found = runtime.readopt(box, process.handle)
            monkeypatch.setattr(exec, "FIRST_POLL", 3600)
            monkeypatch.setattr(exec, "_LAST_LOOK", 3600)
            done = in_thread(found.read)
            process.kill()
            done.join(60)
            assert not done.is_alive()
            assert found.wait() == 137
            stopping.set()
        site.runtime.remove(box, force=True)

    def test_another_boxes_command_is_not_found(self, site: Site) -> None:
        box, other = site.running_box(), site.running_box()
        process = site.runtime.spawn(box, ExecSpec(("sleep", "1000")))
        for ref, handle in ((other, process.handle), (box, "unknown")):
            with pytest.raises(NotFoundError):
                site.runtime.readopt(ref, handle)
        process.kill()
        for ref in (box, other):
            site.runtime.remove(ref, force=True)


def test_only_what_others_do_to_boxes_is_reported(site: Site, docker_host: str) -> None:
    """What this worker does to a box is in the answer to whoever asked for it."""
    heard, stopping = queue.SimpleQueue[None](), threading.Event()
    with another(site, docker_host) as runtime, closing(docker.DockerClient(base_url=docker_host)) as client:
        in_thread(lambda: runtime.watch(lambda: heard.put(None), stopping))
        heard.get(timeout=60)  # the watch has begun
        own, others = site.new_box(), site.new_box()
        runtime.start(own)
        container = client.containers.get(container_name(own))
        container.pause()
        container.unpause()
        runtime.remove(own, force=True)
        container = client.containers.get(container_name(others))
        container.start()
        with pytest.raises(InvalidStateError, match="is running"):
            runtime.remove(others, force=False)
        container.kill()
        container.remove()
        mine = {"label": f"{WORKER_LABEL}={site.owner.worker_id}"}
        *_, last = client.api.events(since=0, until=f"{time.time():.9f}", filters=mine, decode=True)
        wait_until(lambda: (runtime._watch._last_event or 0) >= last["timeNano"], "all is heard")
        assert heard.qsize() == 5
        stopping.set()
        site.runtime.remove(site.running_box(), force=True)  # the watch ends with the next event


@contextmanager
def another(site: Site, docker_host: str) -> Iterator[DockerRuntime]:
    """The runtime of the next worker process, which inherits nothing."""
    assert isinstance(site.runtime, DockerRuntime)
    runtime = DockerRuntime(site.runtime._containers._owner, docker_host)
    yield runtime
    runtime.close()
