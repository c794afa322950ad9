"""The worker process: it starts, serves, and shuts down in order. The boxes live on without it."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import logging
import os
import random
import shutil
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING
from urllib.parse import SplitResult

import grpc

from .. import ids, process, signals
from ..errors import BoxliteError
from ..formats import in_url, split_join_token
from ..metrics import registry as metrics
from .disk_watch import DiskRoom, DiskWatch
from .docker.engine import engine_sockets
from .docker.network import Reach
from .docker.runtime import DockerRuntime
from .executions.journal import Journal
from .executions.registry import Executions
from .files.spool import Spool
from .files.transfer import Files
from .holder import Holder
from .host_access import Policy
from .membership.coordinator import CoordinatorClient, host_and_port, local_address, split_url
from .membership.identity import Identity, locked_home
from .membership.registration import Registration
from .monitoring import gauges
from .monitoring.health import HealthServer
from .service.servicer import WorkerService, make_server
from .supervisor.links import Links
from .supervisor.program import program

if TYPE_CHECKING:
    from ..tls.files import Files as TlsFiles
    from .membership.certificate import Joining

NETWORK_SECONDS = 15.0  # between two looks at the packet filter of the boxes
STOP_GRACE = 10.0  # seconds for calls under way at the shutdown
EXIT_GRACE = 10.0  # seconds after that for threads that wait for an engine that does not answer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerConfig:
    """How a worker is started. `port` and `health_port`: 0 means any free port. `host`: for None see `bind_host`."""

    coordinator: str
    home: Path
    host: str | None = None
    port: int = 9100
    advertise: str | None = None
    name: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    health_port: int = 9101
    max_boxes: int | None = None
    api_key: str | None = None  # or a join token, with which the worker gets a certificate
    policy: Policy = field(default_factory=Policy)
    cpu_overcommit: float = 16.0
    reserve_memory_mib: int | None = None  # that no box is promised; None: a tenth, see `default_reserve`
    reserve_disk: int | None = None  # bytes of the engine's disk; None: see `DiskRoom`
    spool_limit: int | None = None  # bytes of transfers on the disk; None: half of the disk
    output_limit: int | None = None  # bytes of kept output on the disk; None: a quarter of the disk
    supervisor: bool = True  # run commands by a supervisor in each box, where that can be
    warm_images: Mapping[str, int] = field(default_factory=dict)  # how many warm boxes to have, by image
    filtered_network: bool = True  # boxes reach the public internet alone, or none have a network
    allow_private: tuple[IPv4Network, ...] = ()  # networks that boxes reach besides
    rejoin: bool = False  # register also with a coordinator that does not know this worker
    enforce_disk_limit: bool = False  # refuse a disk limit that the engine cannot enforce, rather than watch it
    tls: TlsFiles | None = None  # the certificate of this worker and the authorities; None: see `api_key`
    metrics_token: str | None = None  # that readers of the metrics send; None: only this host may read them
    insecure_grpc: bool = False  # serve gRPC without TLS on any address, and not on loopback only


def run(config: WorkerConfig) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code. Raises `BoxliteError` when the worker cannot start."""
    stopping = threading.Event()
    with locked_home(config.home), _signals(stopping):
        process.come_before_boxes()  # before the first thread is started
        worker = Worker(config, stopping)
        try:
            worker.start()
            worker.serve()
        finally:
            worker.shutdown()
            if threading.current_thread() is threading.main_thread():
                _exit_anyway()
    return 0


class Worker:
    """The parts of a worker, put together."""

    def __init__(self, config: WorkerConfig, stopping: threading.Event) -> None:
        self._config = config
        self._stopping = stopping
        self._coordinator = split_url(config.coordinator)
        self._rng = random.Random()  # for pauses and names  # nosec B311
        self._identity = Identity.load(config.home, config.name, self._rng)
        config.policy.check_host_paths(config.home, engine_sockets())
        self._runtime = DockerRuntime(
            self._identity.owner,
            policy=config.policy,
            holder=Holder(config.home),
            stop_reasons=config.home / "stop-reasons.json",
            records=_made(config.home / "system-files"),
            links=_links(config),
            prepared=config.home / "prepared",
            enforce_disk_limit=config.enforce_disk_limit,
            reach=Reach(config.filtered_network, config.allow_private, self._coordinator.hostname or ""),
        )
        journal = Journal(_made(config.home / "executions"))
        spool = _made(config.home / "spool")
        budget = config.output_limit or shutil.disk_usage(spool).total // 4
        self._executions = Executions(self._runtime, spool, journal=journal, budget=budget)
        self._spool = Spool(_made(config.home / "transfers"), budget=config.spool_limit)
        files = Files(self._runtime, self._spool)
        self._room = DiskRoom(self._runtime, config.reserve_disk)
        self._service = WorkerService(self._runtime, self._executions, files, self._room.check)
        self._epoch = ids.new_id()
        self._server = make_server(self._service, self._identity.secret, self._epoch)
        self._host = bind_host(config, self._coordinator)
        self._api_key, pin = split_join_token(config.api_key)
        self._joining = _joining(config, self._api_key, pin, self._identity)
        self._is_encrypted = config.tls is not None or self._joining is not None
        _refuse_plaintext(config, self._host, is_encrypted=self._is_encrypted)
        self._registration: Registration | None = None
        self._health = HealthServer(
            self._host, config.health_port, self._not_ready, self._metrics, config.metrics_token
        )

    def start(self) -> None:
        """Start all threads of the worker. It listens before it registers: a coordinator may call at once."""
        process.raise_descriptor_limit()
        process.keep_freed_memory()
        self._health.start()
        if self._joining and not self._joining.obtain(self._stopping, self._rng):
            return
        port = _bind(self._server, self._host, self._config.port, self._credentials())
        try:
            self._runtime.tidy()  # before the first call: `tidy` would remove a disk that a call makes
        except BoxliteError as exc:
            log.debug("nothing tidied: %s", exc)  # there is no engine yet, or no cluster yet
        self._executions.recover()  # before the first call
        self._server.start()
        _thread("keeper", lambda: self._executions.keep(self._stopping))
        url = self._advertised_url(port)
        self._registration = Registration(
            client=CoordinatorClient(self._config.coordinator, self._api_key, self._trusted()),
            identity=self._identity,
            runtime=self._runtime,
            url=url,
            epoch=self._epoch,
            labels=self._config.labels,
            max_boxes=self._config.max_boxes,
            rng=self._rng,
            cpu_overcommit=self._config.cpu_overcommit,
            warm_images=self._config.warm_images,
            network=lambda: self._runtime.network.state,
            rejoin=self._config.rejoin,
            reserve_memory_mib=self._config.reserve_memory_mib,
        )
        _thread("registration", self._register)
        _thread("watch", self._watch)
        _thread("disks", self._watch_disks)
        _thread("network", self._watch_network)
        if self._joining:
            _thread("certificate", functools.partial(self._joining.keep, self._stopping))
        log.info(
            "worker %s serves at %s (health on port %d) for coordinator %s",
            self._identity.name,
            url,
            self._health.port,
            self._config.coordinator,
        )

    def serve(self) -> None:
        """Wait for a signal. When the registration ends for good, its error is raised."""
        # Each wait is short: a signal that comes just before it, or to another thread, does not interrupt it,
        # and the signal's handler runs only when this thread runs.
        while not self._stopping.wait(1.0):
            pass
        if self._registration is not None and self._registration.fatal is not None:
            raise self._registration.fatal

    def shutdown(self) -> None:
        """Refuse new calls, finish those under way, and leave the cluster. Boxes and their commands run on."""
        self._stopping.set()
        log.info("worker %s is shutting down", self._identity.name)
        self._executions.wake()
        ended = self._server.stop(STOP_GRACE)
        self._service.end_readers()  # their calls would last as long as the commands that they read
        ended.wait()
        if self._registration is not None:
            self._registration.leave()
        # Frees the threads of cancelled calls that still wait for a pull; they would keep the process alive.
        self._runtime.close()
        self._health.stop()

    def _register(self) -> None:
        assert self._registration is not None
        self._registration.run()
        self._stopping.set()

    def _watch(self) -> None:
        assert self._registration is not None
        if self._is_owner():
            self._runtime.watch(self._registration.report_change, self._stopping)

    def _watch_disks(self) -> None:
        if self._is_owner():
            DiskWatch(self._runtime, self._service.turn, self._rng, room=self._room).run(self._stopping)

    def _watch_network(self) -> None:
        if (state := self._runtime.network.state) != "filtered":
            log.warning("the network of boxes is %s", state)
        if self._is_owner():
            while True:
                try:
                    self._runtime.network.check()
                except BoxliteError as exc:
                    log.warning("the packet filter of the boxes cannot be checked: %s", exc)
                if self._stopping.wait(NETWORK_SECONDS):
                    return

    def _is_owner(self) -> bool:
        """Wait until the worker knows its cluster, and so which boxes are its own. False: it is stopping instead."""
        assert self._registration is not None
        while not self._registration.registered.wait(1.0):
            if self._stopping.is_set():
                return False
        return True

    def _credentials(self) -> grpc.ServerCredentials | None:
        found = self._tls_files()
        if found is None:
            return None
        from .membership import certificate

        return certificate.server_credentials(certificate.watched(found, self._identity))

    def _trusted(self) -> Callable[[], ssl.SSLContext] | None:
        """The settings of HTTPS to the coordinator; None: those of the host."""
        found = self._tls_files()
        if found is None or found.ca is None:
            return None
        from ..tls.files import client_context

        return functools.partial(client_context, found.ca)

    def _tls_files(self) -> TlsFiles | None:
        return self._joining.files if self._joining else self._config.tls

    def _advertised_url(self, port: int) -> str:
        scheme = "https" if self._is_encrypted else "http"
        if self._config.advertise:
            given, _, rest = self._config.advertise.rpartition("://")
            if given not in ("", scheme):
                raise BoxliteError(f"this worker serves {scheme}://, and --advertise gives {self._config.advertise}")
            return f"{scheme}://{rest}"
        host = self._host
        if ipaddress.ip_address(host).is_unspecified:
            while True:
                try:
                    host = local_address(self._coordinator)
                    break
                except OSError as exc:
                    log.warning("cannot find a route to the coordinator, trying again: %s", exc)
                    if self._stopping.wait(self._rng.uniform(1, 5)):
                        raise BoxliteError("stopped before the coordinator's address was known") from exc
        return f"{scheme}://{in_url(host)}:{port}"

    def _not_ready(self) -> str | None:
        if self._stopping.is_set():
            return "shutting down"
        try:
            self._runtime.ping()
        except BoxliteError as exc:
            return exc.message
        if not self._is_registered():
            return "not registered with the coordinator"
        return None

    def _metrics(self) -> bytes:
        read = gauges.read(self._runtime, self._executions, self._spool, self._service, self._is_registered)
        return metrics.text(read)

    def _is_registered(self) -> bool:
        return self._registration is not None and self._registration.registered.is_set()


def bind_host(config: WorkerConfig, coordinator: SplitResult) -> str:
    """The address to serve on: `--host` if given, else loopback if the coordinator is there, else all addresses.

    Raises `BoxliteError` for a `--host` that does not resolve.
    """
    name, port = host_and_port(coordinator)
    with contextlib.suppress(OSError):
        if config.host:
            return str(socket.getaddrinfo(config.host, 0, type=socket.SOCK_STREAM)[0][4][0])
        found = [entry[4][0] for entry in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)]
        loopback = [str(address) for address in found if ipaddress.ip_address(address).is_loopback]
        if loopback and len(loopback) == len(found):
            return next((address for address in loopback if "." in address), loopback[0])
    if config.host:
        raise BoxliteError(f"{config.host!r} is not an address of this host")
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"


def _joining(config: WorkerConfig, api_key: str | None, pin: str | None, identity: Identity) -> Joining | None:
    """How the worker gets its certificate from its coordinator; None where it does not. Raises `BoxliteError`."""
    if config.tls is not None:
        if pin:
            raise BoxliteError("a join token brings the worker its certificate; leave out the token, or --tls-cert")
        return None
    if pin is None and not (config.home / "tls" / "worker.pem").exists():
        return None
    from .membership.certificate import Joining

    return Joining(config.coordinator, api_key, pin, identity, config.home)


def _refuse_plaintext(config: WorkerConfig, host: str, *, is_encrypted: bool) -> None:
    if not (is_encrypted or config.insecure_grpc or ipaddress.ip_address(host).is_loopback):
        raise BoxliteError(
            f"without TLS the worker serves loopback addresses only, and {host} is none: start it with a join token "
            "(`boxlite-server keys create --worker --tls-ca FILE`), or with --tls-cert, --tls-key and --tls-ca, or "
            "give --insecure-grpc in a network where nobody else can listen"
        )


def _bind(server: grpc.Server, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
    address = f"{in_url(host)}:{port}"
    try:
        bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError:
        bound = 0
    if not bound:
        raise BoxliteError(f"cannot serve on {in_url(host)}:{port}: the port is taken, or this host lacks the address")
    return int(bound)


def _links(config: WorkerConfig) -> Links | None:
    """The links to the supervisors in boxes; None: commands are run by the engine's exec."""
    wanted = config.supervisor and not config.policy.has_other_runtime
    built = program() if wanted else None
    if wanted and built is None:
        log.warning("boxes get no supervisor: none was built for this machine, which makes commands slow")
    return Links(config.home / "boxes", built) if built else None


def _made(directory: Path) -> Path:
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def _thread(name: str, target: Callable[[], None]) -> None:
    threading.Thread(target=target, name=name, daemon=True).start()


def _exit_anyway() -> None:
    """Exit after `EXIT_GRACE` even if calls still wait for the engine: Python would wait for their threads."""

    def exit_late() -> None:
        time.sleep(EXIT_GRACE)
        log.warning("calls to the container engine do not end; exiting without them")
        os._exit(0)

    _thread("exit", exit_late)


@contextlib.contextmanager
def _signals(stopping: threading.Event) -> Iterator[None]:
    """Let SIGTERM and SIGINT set `stopping` during the `with` block. Does nothing outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signals.keep_from_children()
    former = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
