"""Images, volumes and ports of the fake runtime: as strict as an engine's."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

from boxlite_server import references
from boxlite_server.errors import ImageError, InvalidArgumentError, InvalidStateError
from boxlite_server.worker.runtime import BoxSpec, Image, PortMapping, PullProgress, Volume

SIZE = 1000


class FakeImages:
    """`pullable`: the images that the registry has. `specs` gives the specs of the existing boxes."""

    def __init__(self, names: Sequence[str], pullable: Sequence[str], specs: Callable[[], list[BoxSpec]]) -> None:
        self._pullable = {_full(name) for name in pullable}
        self._specs = specs
        self._images: dict[str, Image] = {}
        for name in names:
            self._add(_full(name))

    def _add(self, reference: str) -> Image:
        image = Image(reference, f"sha256:{hash(reference) & (1 << 256) - 1:064x}", int(time.time() * 1000), SIZE)
        self._images[reference] = image
        return image

    def need(self, name: str) -> bool:
        """Make the image available to a create: pull it when it is missing. Returns whether it was."""
        is_missing = _full(name) not in self._images
        if is_missing:
            for _ in self.pull(name):
                pass
        return is_missing

    def id_of(self, name: str) -> str:
        return self._images[_full(name)].image_id

    def list(self) -> list[Image]:
        return list(self._images.values())

    def pull(self, reference: str, *, ask_first: bool = False) -> Iterator[PullProgress | Image]:
        full = _full(reference)
        if full not in self._pullable:
            raise ImageError(f"image '{reference}' cannot be pulled: the registry does not have it")
        yield PullProgress(SIZE // 2, SIZE)
        is_missing = full not in self._images
        yield replace(self._add(full), was_pulled=is_missing)

    def remove(self, reference: str) -> None:
        full = _full(reference)
        if full in self._images and any(_full(spec.image) == full for spec in self._specs()):
            raise InvalidStateError(f"image {reference} is in use")
        self._images.pop(full, None)


class FakeVolumes:
    def __init__(self, specs: Callable[[], list[BoxSpec]]) -> None:
        self._specs = specs
        self._volumes: dict[str, Volume] = {}

    def create(self, volume_id: str) -> Volume:
        return self._volumes.setdefault(volume_id, Volume(volume_id, int(time.time() * 1000)))

    def remove(self, volume_id: str) -> None:
        if any(mount.volume_id == volume_id for spec in self._specs() for mount in spec.mounts):
            raise InvalidStateError(f"volume {volume_id} is in use")
        self._volumes.pop(volume_id, None)

    def list(self) -> list[Volume]:
        return list(self._volumes.values())

    def check(self, spec: BoxSpec) -> None:
        for mount in spec.mounts:
            if mount.volume_id and mount.volume_id not in self._volumes:
                raise InvalidStateError(f"volume {mount.volume_id} is not on this worker")


class FakePorts:
    """Ports that a running box holds at the host."""

    def __init__(self) -> None:
        self._held = ExitStack()

    def open(self, ports: Sequence[PortMapping]) -> tuple[PortMapping, ...]:
        """Bind the real host ports, all or none."""
        opened = []
        with ExitStack() as held:
            for port in ports:
                kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
                holder = held.enter_context(socket.socket(type=kind))
                try:
                    holder.bind((port.host_ip, port.host_port))
                    if kind is socket.SOCK_STREAM:
                        holder.listen()
                except OSError as exc:
                    raise InvalidStateError(f"port {port.host_ip}:{port.host_port} is taken: {exc}") from exc
                opened.append(replace(port, host_port=holder.getsockname()[1]))
            self._held = held.pop_all()
        return tuple(opened)

    def close(self) -> None:
        self._held.close()


def _full(name: str) -> str:
    try:
        return str(references.parse(name).tagged())
    except InvalidArgumentError as exc:
        raise ImageError(exc.message) from exc
