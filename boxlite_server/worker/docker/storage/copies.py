"""Copies of disks: images that are made of containers and archives, and what is needed for that for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

from .... import ids
from ....errors import BoxliteError, InvalidStateError, NotFoundError
from ...runtime import Owner
from ..config import KEEP_ALIVE
from ..engine import Engine, act_on_all, engine_errors
from ..labels import EXPORT_REPOSITORY, helper_labels

COPY_TIMEOUT = 900.0  # seconds, of a call that copies a disk


class Copies:
    """Makes images, and keeps sweeps away meanwhile: the engine makes an image and then tags it, and in between a sweep
    would take it for garbage."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sweeping = threading.Lock()
        self._making = 0  # calls under way that make an image
        self._waiting: Callable[[], None] | None = None  # a sweep that waits for them to end

    def commit(self, container_id: str, tag: str, settings: Mapping[str, Any], what: str) -> None:
        """Copy a container's disk to a tagged image. The container is paused meanwhile. `settings`: what the image's
        `Config` gets before the container's; `what` names the failure."""
        repository, _, name = tag.partition(":")
        source = {"container": container_id, "repo": repository, "tag": name, "pause": True}
        with self.making(), engine_errors(what):
            self._engine.call("POST", "/commit", source, json=settings, timeout=COPY_TIMEOUT).check()

    def import_disk(self, tar: Iterable[bytes], tag: str, labels: Mapping[str, str], what: str) -> str:
        """Make a tagged image of one layer from a tar archive. Returns the engine's refusal; empty: there is none."""
        repository, _, name = tag.partition(":")
        changes = " ".join(f'{key}="{value}"' for key, value in labels.items())
        parameters = {"fromSrc": "-", "repo": repository, "tag": name, "changes": [f"LABEL {changes}"]}
        with ExitStack() as stack, engine_errors(what):
            body = self._to_the_end(tar, stack)
            answer = self._engine.send("POST", "/images/create", parameters, body, timeout=COPY_TIMEOUT)
        return answer.refusal()

    def _to_the_end(self, tar: Iterable[bytes], stack: ExitStack) -> Iterator[bytes]:
        """The pieces of an archive. The engine makes the image at their end; sweeps must not wait for a slow client."""
        yield from tar
        stack.enter_context(self.making())

    @contextmanager
    def making(self) -> Iterator[None]:
        """Keep sweeps away for the duration of the `with` block, in which the engine makes an image."""
        with self._sweeping:
            self._making += 1
        try:
            yield
        finally:
            with self._sweeping:
                self._making -= 1
                due = None if self._making else self._waiting
            if due is not None:
                with suppress(BoxliteError):
                    self.sweep(due)

    def sweep(self, remove_unwanted: Callable[[], None]) -> None:
        """Call the function while no image is being made; if one is, at the end of that."""
        with self._sweeping:
            self._waiting = remove_unwanted if self._making else None
            if self._waiting is None:
                remove_unwanted()


class Scratch:
    """Containers, and an image tagged `tag`, for the duration of a `with` block.

    They carry `labels`, by which nobody takes them for boxes and disks, and by which `DockerDisks.tidy` finds what a
    killed process left.
    """

    def __init__(self, engine: Engine, owner: Owner) -> None:
        self._engine = engine
        self._name = ids.new_id()
        self._containers: list[str] = []
        self.labels = helper_labels(owner)
        self.tag = f"{EXPORT_REPOSITORY}:{self._name}"

    def container(self, image: str) -> dict[str, Any]:
        """The engine's description of a new container, which is never started."""
        name = f"boxlite-export-{self._name}-{len(self._containers)}"
        self._containers.append(name)
        with engine_errors("cannot make a helper"):
            self._engine.api.create_container(image, KEEP_ALIVE, entrypoint=[], name=name, labels=self.labels)
            return dict(self._engine.api.inspect_container(name))

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *exc: object) -> None:
        ends: list[Callable[[], None]] = [partial(remove_helper, self._engine, name) for name in self._containers]
        act_on_all(lambda end: end(), [*ends, self._untag])

    def _untag(self) -> None:
        # The engine keeps an image that another one is based on.
        with suppress(NotFoundError, InvalidStateError), engine_errors("cannot remove a helper's image"):
            self._engine.api.remove_image(self.tag, noprune=True)


def remove_helper(engine: Engine, container: str) -> None:
    """Remove a container of a `Scratch`, if it is there."""
    with suppress(NotFoundError), engine_errors("cannot remove a helper"):
        engine.api.remove_container(container, v=True, force=True)
