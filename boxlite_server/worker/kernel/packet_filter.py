"""The packet filter of the boxes' bridge: nftables tables of the worker's own, before those of the engine.

The table of the family bridge sees each frame that a box sends: it must come from the box's own port with the box's own
addresses, and goes to no other port of the bridge. A box that was not admitted yet can use no address of the boxes'
subnet. (The name of the bridge cannot be asked for: not every kernel has NFT_BRIDGE_META. The engine calls the host's
ends of boxes veth and some letters.) The table of the family inet sees what leaves the bridge: nothing
for the host, and nothing for addresses that are not the public internet's, except what the operator allows.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, collapse_addresses
from typing import NamedTuple

from ...errors import EngineError
from . import nftables
from .netns import NetworkNamespace

# What is not the public internet (RFC 6890): private, link-local (with the metadata of clouds), multicast and others.
_NOT_PUBLIC = (
    "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.0.0.0/24, 192.0.2.0/24, "
    "192.88.99.0/24, 192.168.0.0/16, 198.18.0.0/15, 198.51.100.0/24, 203.0.113.0/24, 224.0.0.0/3"
)

# What a box asks for in good faith fails at once, and not by a time-out.
_REFUSE = "counter reject with icmpx type admin-prohibited"

_TABLES = """\
table bridge {table}
delete table bridge {table}
table inet {table}
delete table inet {table}
table bridge {table} {{
    set ports {{
        type ifname
    }}
    set cards {{
        type ether_addr
    }}
    set boxes {{
        type ifname . ether_addr . ipv4_addr
    }}
    chain from_ports {{
        type filter hook prerouting priority -400; policy accept;
        iifname @ports goto from_boxes
        iifname != "veth*" accept
        ether saddr @cards counter drop
        ip saddr {subnet} counter drop
        arp saddr ip {subnet} counter drop
    }}
    chain from_boxes {{
        ether type ip iifname . ether saddr . ip saddr @boxes accept
        ether type != arp counter drop
        iifname . ether saddr . arp saddr ip @boxes iifname . arp saddr ether . arp saddr ip @boxes accept
        counter drop
    }}
    chain between_ports {{
        type filter hook forward priority -400; policy accept;
        iifname @ports counter drop
        oifname @ports counter drop
        iifname != "veth*" accept
        ip daddr {subnet} counter drop
        arp daddr ip {subnet} counter drop
    }}
}}
table inet {table} {{
    chain to_host {{
        type filter hook input priority -10; policy accept;
        iifname != "{bridge}" accept
        ip saddr != {subnet} counter drop
        ct state established accept
        ct state related meta l4proto icmp accept
        {resolvers}
        {refuse}
    }}
    chain through_host {{
        type filter hook forward priority -10; policy accept;
        iifname "{bridge}" goto out_of_boxes
        oifname "{bridge}" goto into_boxes
    }}
    chain out_of_boxes {{
        oifname "{bridge}" counter drop
        meta nfproto ipv6 counter drop
        ip saddr != {subnet} counter drop
        ct state established accept
        ct state related meta l4proto icmp accept
        {resolvers}
        {denied}
        {allowed}
        ip daddr {{ {not_public} }} {refuse}
    }}
    chain into_boxes {{
        ct state established,related accept
        ct status dnat accept
        counter drop
    }}
}}
"""


log = logging.getLogger(__name__)


class Port(NamedTuple):
    """Where a box is on the bridge: the index of the host's end of its veth, and the addresses that are the box's."""

    interface: int
    hardware_address: str
    address: str


class Mark(NamedTuple):
    """What is to be seen of bridge and filter at little cost: the index of the bridge (0: it is missing), which a new
    one does not have again, and the generation of all rules in its namespace."""

    bridge: int
    generation: int


class _Admitted(NamedTuple):
    """A port by the name of its interface."""

    interface: str
    hardware_address: str
    address: str

    def __str__(self) -> str:
        return f'"{self.interface}" . {self.hardware_address} . {self.address}'


@dataclass(frozen=True)
class Rules:
    """`subnet`: of the boxes. What boxes may reach besides the public internet, and what they may not reach even so.
    `resolvers`: for DNS alone."""

    subnet: str
    allowed: tuple[IPv4Network, ...] = ()
    denied: tuple[str, ...] = ()
    resolvers: tuple[str, ...] = ()


class PacketFilter:
    """The filter of one bridge in a network namespace. Each method raises `EngineError` or OSError when the filter
    cannot be put there."""

    def __init__(self, namespace: NetworkNamespace, bridge: str, table: str) -> None:
        self._namespace = namespace
        self._bridge = bridge
        self._table = table
        self._lock = threading.Lock()
        self._installed: Rules | None = None
        self._shown = ""  # how nft shows the tables of these
        self._checked: Mark | None = None  # with which the tables were there unchanged
        self._boxes: set[_Admitted] = set()

    def probe(self) -> None:
        """Have the kernel check the tables without taking them."""
        everything = Rules("192.0.2.0/24", (IPv4Network("192.0.2.0/24"),), ("192.0.2.1",), ("192.0.2.1",))
        self._nft(self._text(everything), dry_run=True)

    def look(self) -> Mark:
        """The mark of bridge and filter as they are now."""
        return self._namespace.within(self._look)

    def _look(self) -> Mark:
        """See `look`; called in the namespace."""
        bridge = 0
        with suppress(OSError):
            bridge = socket.if_nametoindex(self._bridge)
        return Mark(bridge, nftables.generation())

    def ensure(self, rules: Rules, mark: Mark) -> bool:
        """Put the tables in place, unless they are there unchanged. `mark`: from a `look` just now. Returns whether the
        tables had been lost or changed by somebody since the last call."""
        with self._lock:
            if self._installed == rules and (mark == self._checked or self._read() == self._shown):
                self._checked = mark
                return False
            was_there = self._installed is not None
            self._nft(self._text(rules))
            self._installed, self._shown, self._checked = rules, self._read(), None
            return was_there

    def admit(self, boxes: Iterable[Port]) -> None:
        """Let boxes speak. A box that nobody has admitted reaches nothing."""
        with self._lock:
            self._namespace.within(lambda: self._admit(boxes))

    def _admit(self, boxes: Iterable[Port]) -> None:
        """See `admit`; called in the namespace."""
        new = set(filter(None, map(_named, boxes))) - self._boxes
        self._boxes |= new
        if new and self._installed:
            before = self._look()
            nftables.run(self._elements(new))
            if before == self._checked:  # and so it stays, unless somebody else makes a transaction
                self._checked = Mark(before.bridge, before.generation + 1)

    def forget_absent(self) -> None:
        """Drop the boxes whose ports are gone."""
        with self._lock:
            there = self._namespace.interfaces()
            gone = {port for port in self._boxes if port.interface not in there}
            self._boxes -= gone
            if gone and self._installed:
                self._nft(self._text(self._installed))  # two boxes may have had the same card, one after the other

    def _text(self, rules: Rules) -> str:
        resolvers, denied = ", ".join(rules.resolvers), ", ".join(rules.denied)
        allowed = ", ".join(map(str, collapse_addresses(rules.allowed)))
        text = _TABLES.format(
            table=self._table,
            bridge=self._bridge,
            subnet=rules.subnet,
            resolvers=f"ip daddr {{ {resolvers} }} meta l4proto {{ tcp, udp }} th dport 53 accept" if resolvers else "",
            denied=f"ip daddr {{ {denied} }} {_REFUSE}" if denied else "",
            refuse=_REFUSE,
            allowed=f"ip daddr {{ {allowed} }} accept" if allowed else "",
            not_public=_NOT_PUBLIC,
        )
        return text + self._elements(self._boxes) if self._boxes else text

    def _elements(self, boxes: Iterable[_Admitted]) -> str:
        """Commands that add boxes to the sets."""
        lines = []
        for box in boxes:
            of_box = {"ports": f'"{box.interface}"', "cards": box.hardware_address, "boxes": str(box)}
            lines += [f"add element bridge {self._table} {name} {{ {value} }}\n" for name, value in of_box.items()]
        return "".join(lines)

    def _read(self) -> str:
        """The tables as nft shows them, without the boxes and without counts; empty when one is missing."""
        try:
            # One command for both shows a table of the last family alone (nftables 1.0.6).
            return "".join(self._nft(f"list table {family} {self._table}") for family in ("bridge", "inet"))
        except EngineError:
            return ""

    def _nft(self, commands: str, *, dry_run: bool = False) -> str:
        return self._namespace.within(lambda: nftables.run(commands, dry_run=dry_run))


def _named(port: Port) -> _Admitted | None:
    """The port with the name that it has in the calling thread's namespace; None: it is gone."""
    try:
        return _Admitted(socket.if_indextoname(port.interface), port.hardware_address, port.address)
    except OSError:
        log.info("the box with the address %s is not on the bridge any more", port.address)
        return None
