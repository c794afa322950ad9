"""The network of a worker's boxes: a bridge of its own, made by the engine, with the worker's packet filter on it."""

from __future__ import annotations

import hashlib
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import Any

from ...errors import EngineError, NotFoundError, UnsupportedError
from ..kernel.netns import NetworkNamespace
from ..kernel.packet_filter import PacketFilter, Port, Rules
from ..runtime import Owner
from .engine import Engine, engine_errors
from .labels import owned_by, owner_labels

_DEFAULT = "bridge"  # the engine's default network, on which earlier versions had all boxes
_LOOK_UP_AGAIN = 60.0  # seconds after which the coordinator may have other addresses
_TRY_AGAIN = 10.0  # seconds after which a filter that could not be put in place is tried again

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reach:
    """What boxes may reach. `filtered`: the public internet alone, besides the networks of `allowed`; otherwise, all
    that their host reaches. `coordinator`: the host name or address that no box may reach."""

    filtered: bool = True
    allowed: tuple[IPv4Network, ...] = ()
    coordinator: str = ""


class BoxNetwork:
    """The network for an owner's boxes, and the filter that keeps them from each other, from the host, and from what is
    not the public internet."""

    def __init__(self, engine: Engine, owner: Callable[[], Owner], reach: Reach) -> None:
        self._engine = engine
        self._owner = owner
        self._reach = reach
        self._lock = threading.Lock()
        self._filter: tuple[int, PacketFilter] | None = None  # and the pid of the engine whose namespace it is in
        self._network: tuple[int, Mapping[str, Any]] | None = None  # as the engine describes it, and its bridge's index
        self._problem: tuple[float, str] = (-_TRY_AGAIN, "it was not tried yet")
        self._denied_since: tuple[float, tuple[str, ...]] = (-_LOOK_UP_AGAIN, ())

    @property
    def name(self) -> str:
        """That of the engine's network on which boxes are."""
        return self._own if self._reach.filtered else _DEFAULT

    @property
    def _own(self) -> str:
        return f"boxlite-{self._tag}"

    @property
    def state(self) -> str:
        """`filtered` or `unfiltered`, or `refused: ` and why boxes with a network are refused."""
        if not self._reach.filtered:
            return "unfiltered"
        problem = self._tried()
        return f"refused: {problem}" if problem else "filtered"

    def admit(self) -> None:
        """Raise `UnsupportedError` if no box may have a network, since it could not be kept from others."""
        if self._reach.filtered and (problem := self._tried()):
            raise UnsupportedError(
                f"this worker takes no box with a network: its packet filter cannot be put in place ({problem}); its "
                "operator can do without with --unfiltered-network"
            )

    def before_start(self, container: Mapping[str, Any]) -> None:
        """Put network and filter in place for a container that is to be started, and move it there if it is on
        another network. Raises `EngineError` when that cannot be done."""
        if not is_networked(container):
            return
        joined = (container.get("NetworkSettings") or {}).get("Networks") or {}
        if self._reach.filtered:
            network_id = self._ensure()["Id"]
            is_there = joined.keys() == {self.name} and joined[self.name]["NetworkID"] in ("", network_id)
        else:
            is_there = self._own not in joined  # it was filtered before
        if joined and not is_there:
            with engine_errors("cannot move the box to its worker's network"):
                for former in joined:
                    with suppress(NotFoundError), engine_errors("cannot leave a network"):
                        self._engine.api.disconnect_container_from_network(container["Id"], former, force=True)
                self._engine.api.connect_container_to_network(container["Id"], self.name)

    def after_start(self, container: Mapping[str, Any]) -> None:
        """Let a container that was just started speak. `container`: as the engine describes it since."""
        if self._reach.filtered and is_networked(container) and (port := self._port(container)):
            with self._lock, _filter_errors():
                self._in_place().admit([port])

    def check(self) -> None:
        """Put the filter in place again if somebody has removed or changed it, and forget the boxes that are gone."""
        if self._reach.filtered and (self._filter or any(self._running())):
            self._ensure()
            with self._lock, _filter_errors():
                self._in_place().forget_absent()

    # ---- in place ----

    def _tried(self) -> str:
        """Why the filter cannot be put in place; empty if it can."""
        with self._lock:
            when, problem = self._problem
            if problem and time.monotonic() - when >= _TRY_AGAIN:
                try:
                    with _filter_errors():
                        PacketFilter(NetworkNamespace(self._engine.pid), "boxlite", "boxlite_probe").probe()
                    problem = ""
                except EngineError as exc:
                    problem = exc.message
                self._problem = time.monotonic(), problem
        return problem

    def _ensure(self) -> Mapping[str, Any]:
        """The engine's network, with the filter on it. Raises `EngineError`."""
        with self._lock, _filter_errors():
            in_place = self._in_place()
            mark = in_place.look()
            if self._network is None or self._network[0] != mark.bridge or not mark.bridge:
                self._network = mark.bridge, self._made()
            network = self._network[1]
            if in_place.ensure(self._rules(network), mark):
                log.warning("somebody had removed or changed the packet filter of the boxes; it is in place again")
            return network

    def _in_place(self) -> PacketFilter:
        """The filter, in the engine's namespace. A new one admits the boxes that run already."""
        pid = self._engine.pid
        if self._filter is None or self._filter[0] != pid:
            made = PacketFilter(NetworkNamespace(pid), self._bridge, f"boxlite_{self._tag}")
            made.admit([*filter(None, map(self._port, self._running()))])
            self._filter, self._network = (pid, made), None
        return self._filter[1]

    @property
    def _tag(self) -> str:
        return hashlib.sha256(self._owner().worker_id.encode()).hexdigest()[:10]

    @property
    def _bridge(self) -> str:
        return f"blx-{self._tag}"

    def _made(self) -> Mapping[str, Any]:
        with suppress(NotFoundError), engine_errors("cannot look at the boxes' network"):
            return dict(self._engine.api.inspect_network(self.name))
        with engine_errors("cannot make the boxes' network"):
            self._engine.api.create_network(
                self.name,
                driver="bridge",
                check_duplicate=True,
                labels=owner_labels(self._owner()),
                options={"com.docker.network.bridge.name": self._bridge},
            )
            return dict(self._engine.api.inspect_network(self.name))

    def _rules(self, network: Mapping[str, Any]) -> Rules:
        subnets = [pool["Subnet"] for pool in network["IPAM"]["Config"] if ":" not in pool["Subnet"]]
        if network["Options"].get("com.docker.network.bridge.name") != self._bridge or len(subnets) != 1:
            raise EngineError(f"the engine's network {self.name} is none that a worker has made; remove it")
        return Rules(subnets[0], self._reach.allowed, self._denied(), tuple(_resolvers(self._engine.pid)))

    def _denied(self) -> tuple[str, ...]:
        """The coordinator's addresses. What cannot be looked up now is as it was."""
        when, known = self._denied_since
        if self._reach.coordinator and time.monotonic() - when >= _LOOK_UP_AGAIN:
            with suppress(OSError):
                found = socket.getaddrinfo(self._reach.coordinator, None, socket.AF_INET, socket.SOCK_STREAM)
                known = tuple(sorted({str(entry[4][0]) for entry in found}))
            self._denied_since = time.monotonic(), known
        return known

    def _running(self) -> Iterator[Mapping[str, Any]]:
        """The boxes that run on the network."""
        filters = {"label": owned_by(self._owner()), "network": [self.name]}
        listed: list[Mapping[str, Any]] = []
        with suppress(NotFoundError), engine_errors("cannot list the boxes"):
            listed = self._engine.api.containers(filters=filters)
        for entry in listed:
            with suppress(NotFoundError), engine_errors("cannot inspect a box"):
                yield self._engine.api.inspect_container(entry["Id"])

    def _port(self, container: Mapping[str, Any]) -> Port | None:
        """Where the running container is on the bridge; None if it has ended."""
        joined = container["NetworkSettings"]["Networks"].get(self.name) or {}
        card, address, pid = joined.get("MacAddress"), joined.get("IPAddress"), container["State"]["Pid"]
        if not (card and address and pid):
            return None
        try:
            return Port(NetworkNamespace(pid).peer_of(card), card, address)
        except OSError as exc:
            log.info("container %s is not on the network any more: %s", container["Id"][:12], exc)
            return None


@contextmanager
def _filter_errors() -> Iterator[None]:
    """Raise `EngineError` for an OSError of the filter."""
    try:
        yield
    except OSError as exc:
        raise EngineError(f"the packet filter cannot be put in place: {exc}") from exc


def is_networked(container: Mapping[str, Any]) -> bool:
    """Whether the container has a network besides its own loopback."""
    return str(container["HostConfig"]["NetworkMode"]) != "none"


def _resolvers(pid: int) -> list[str]:
    """The name servers that the engine gives to containers, as far as they are no loopback addresses: such ones the
    engine asks itself."""
    found: list[str] = []
    for path in ("etc/resolv.conf", "run/systemd/resolve/resolv.conf"):
        with suppress(OSError):
            text = (Path(f"/proc/{pid}/root") / path).read_text(errors="replace")
            for word in re.findall(r"^\s*nameserver\s+(\S+)", text, re.MULTILINE):
                with suppress(ValueError):
                    address = ip_address(word)
                    if address.version == 4 and not address.is_loopback:
                        found.append(str(address))
    return sorted(set(found))
