"""Publish one port of a box on the machine, for an engine in a network namespace of its own.

    python port_proxy.py HOST_NETNS -proto tcp -host-ip A -host-port N -container-ip A -container-port N

The engine runs this in place of its docker-proxy (`--userland-proxy-path`), with the same arguments and the
same report on descriptor 3: "0\\n" once the port is open, else "1\\n" and the reason. The port is opened in the
network namespace at the path HOST_NETNS; the box is reached from the namespace in which this starts.

Nothing but the standard library is imported: one such process runs for each published port.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading

_CLONE_NEWNET = 0x40000000
_REPORT = 3  # the descriptor on which the engine waits
_UDP_CLIENTS = 1024  # at most, at once
_UDP_SECONDS = 90.0  # without an answer, after which a client's socket is closed
_CHUNK = 65536

_Address = tuple[str, int]


def main() -> int:
    """Serve until a signal; the exit code is 1 when the port cannot be opened."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the engine ends its proxies by SIGINT
        signal.signal(number, signal.SIG_DFL)
    parser = argparse.ArgumentParser(prefix_chars="-", allow_abbrev=False)
    parser.add_argument("netns")
    for name in ("proto", "host-ip", "container-ip"):
        parser.add_argument(f"-{name}")
    for name in ("host-port", "container-port"):
        parser.add_argument(f"-{name}", type=int)
    options, _ = parser.parse_known_args()  # later engines pass more
    kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}.get(options.proto)
    at, box = (options.host_ip, options.host_port), (options.container_ip, options.container_port)
    try:
        if kind is None:
            raise OSError(f"protocol {options.proto} cannot be published")
        listener = _open(options.netns, kind, at)
    except OSError as error:
        reason = error.strerror.lower() if error.strerror else str(error)
        _report(f"1\nlisten {options.proto} {at[0]}:{at[1]}: bind: {reason}")
        return 1
    _report("0\n")
    if kind == socket.SOCK_STREAM:
        _serve_tcp(listener, box)
    else:
        _serve_udp(listener, box)
    return 0


def _report(text: str) -> None:
    with contextlib.suppress(OSError), os.fdopen(_REPORT, "w") as pipe:
        pipe.write(text)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _open(netns: str, kind: socket.SocketKind, at: _Address) -> socket.socket:
    """A bound socket of another network namespace. Raises OSError."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    _enter(there)
    try:
        listener = socket.socket(_family(at[0]), kind)  # it belongs to that namespace for good
        if listener.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(at)
        if kind == socket.SOCK_STREAM:
            listener.listen(socket.SOMAXCONN)
        return listener
    finally:
        _enter(here)
        os.close(there)
        os.close(here)


def _enter(netns: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(netns, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _start(target: object, *args: object) -> None:
    threading.Thread(target=target, args=args, daemon=True).start()  # type: ignore[arg-type]


def _serve_tcp(listener: socket.socket, box: _Address) -> None:
    while True:
        client, _ = listener.accept()
        _start(_relay, client, box)


def _relay(client: socket.socket, box: _Address) -> None:
    """Carry one connection both ways, half-closed ends included."""
    with client:
        try:
            server = socket.create_connection(box)
        except OSError:
            return
        with server:
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)
            back.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(_CHUNK):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:  # one end is gone: so is the connection
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _serve_udp(listener: socket.socket, box: _Address) -> None:
    """Carry datagrams; each client has a socket towards the box, by which answers find back to the client."""
    clients: dict[_Address, socket.socket] = {}
    while True:
        data, client = listener.recvfrom(_CHUNK)
        server = clients.get(client)
        if server is None:
            if len(clients) >= _UDP_CLIENTS:
                continue
            server = socket.socket(_family(box[0]), socket.SOCK_DGRAM)
            server.connect(box)
            server.settimeout(_UDP_SECONDS)
            clients[client] = server
            _start(_answer, listener, clients, client, server)
        with contextlib.suppress(OSError):
            server.send(data)


def _answer(
    listener: socket.socket, clients: dict[_Address, socket.socket], client: _Address, server: socket.socket
) -> None:
    while True:
        try:
            listener.sendto(server.recv(_CHUNK), client)
        except ConnectionRefusedError:  # the box does not listen, or not yet
            continue
        except OSError:
            break
    del clients[client]
    server.close()


if __name__ == "__main__":
    sys.exit(main())
