"""The images of Docker Engine: list, pull and remove them."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from .... import references
from ....errors import (
    BoxliteError,
    EngineError,
    ImageError,
    InvalidArgumentError,
    InvalidStateError,
    LocalImageError,
    NotFoundError,
    PrivateImageError,
)
from ...runtime import Image, PullProgress
from ..engine import Engine, engine_errors, refusal
from ..labels import IMAGE_LABEL, image_labels, is_base
from .bases import Bases
from .registries import NEEDS_NO_LOGIN, Registries, failure
from .tags import Tags

PULL_TIMEOUT = 900.0  # seconds
_MAX_LOGGED = 1000  # characters of what the engine or a registry says
_PROGRESS_PERIOD = 0.5  # seconds
_OWN_LABELS = "boxlite."  # prefix of the labels on images that hold disks of boxes

log = logging.getLogger(__name__)


class DockerImages:
    """The `Images` of Docker Engine. Several callers who pull the same image share one pull."""

    def __init__(self, engine: Engine, bases: Bases, registries: Registries, tags: Tags) -> None:
        self._engine = engine
        self._bases = bases
        self._registries = registries
        self._tags = tags
        self._lock = threading.Lock()
        self._pulls: dict[str, _Pull] = {}

    def close(self) -> None:
        """Make all callers who wait for a pull raise `EngineError`."""
        with self._lock:
            waiting = list(self._pulls.values())
            self._pulls.clear()
        for pull in waiting:
            pull.done.set_exception(EngineError("the worker is shutting down"))

    def get(self, reference: str, *, ask_first: bool = False) -> tuple[dict[str, Any], bool]:
        """The engine's description of the image, and whether it was missing and is pulled now. Raises `ImageError` when
        it cannot be had; for `ask_first` see `pull`."""
        try:
            if references.is_digest(reference):
                return self._found(reference), False
            wanted = _parsed(reference)
            with suppress(NotFoundError):
                return self._tagged(str(wanted)), False
            if ask_first:
                self._refuse_private(wanted)
            for _ in self._fetch(wanted, reference):
                pass
            return self._found(str(wanted)), True
        except NotFoundError as exc:
            raise LocalImageError(f"image {reference!r} is not there after its pull") from exc
        except (InvalidArgumentError, InvalidStateError) as exc:
            raise ImageError(exc.message) from exc

    def list(self) -> list[Image]:
        with engine_errors("cannot list the images"):
            found = list(self._engine.api.images())
        images = []
        for entry in found:
            if _is_own(entry["Labels"] or {}):
                continue
            with suppress(NotFoundError):  # the image was removed between the two calls
                images += _names(self._inspect(entry["Id"]))
        is_private = functools.cache(self._is_private)  # a helper program may have to tell
        return [replace(image, is_private=is_private(references.parse(image.reference).repository)) for image in images]

    def is_private(self, reference: str) -> bool:
        """Whether not everybody may be able to pull the image: pulls carry credentials of the host."""
        return self._is_private(_parsed(reference).repository)

    def remove(self, reference: str) -> None:
        try:
            description = self._inspect(
                reference if references.is_digest(reference) else str(references.parse(reference).tagged())
            )
        except NotFoundError:
            return
        if _is_own(image_labels(description)) or is_base(reference):
            return  # neither a box's disk nor a base counts as an image
        with engine_errors("cannot list the containers"):
            containers = self._engine.api.containers(all=True)
        names = {image.reference for image in _names(description)}
        wanted = str(references.parse(reference).tagged())
        made_of = self._bases.made_of(description["Id"])
        users = [
            entry
            for entry in containers
            if entry["ImageID"] in made_of and (names <= {wanted} or _full(_asked_for(entry)) == wanted)
        ]
        if users:
            raise InvalidStateError(f"image {reference} is in use; remove the boxes made of it first")
        with suppress(NotFoundError), engine_errors(f"image {reference} cannot be removed"):
            self._engine.api.remove_image(reference)
        self._bases.sweep()

    def pull(self, reference: str, *, ask_first: bool = False) -> Iterator[PullProgress | Image]:
        wanted = _parsed(reference)
        if ask_first:
            self._refuse_private(wanted)
        before = ""
        with suppress(NotFoundError):
            before = self._inspect(str(wanted))["Id"]
        yield from self._fetch(wanted, reference)
        named = _names(self._inspect(str(wanted)))
        image = next((image for image in named if image.reference == str(wanted)), named[0])
        yield replace(image, is_private=self._is_private(wanted.repository), was_pulled=image.image_id != before)

    def _refuse_private(self, wanted: references.Reference) -> None:
        if self._is_private(wanted.repository):
            raise PrivateImageError(f"image '{wanted}' is pulled with credentials of this worker's host")

    def _is_private(self, repository: str) -> bool:
        registry = repository.partition("/")[0]
        return not repository.startswith(NEEDS_NO_LOGIN) and self._engine.has_credentials(registry)

    def _fetch(self, wanted: references.Reference, reference: str) -> Iterator[PullProgress]:
        """Start or join the pull of `wanted`; yields the progress until it is done. `reference` is for error texts."""
        pull = self._join(wanted)
        deadline = time.monotonic() + PULL_TIMEOUT
        while True:
            try:
                pull.done.result(_PROGRESS_PERIOD)
                break
            except FutureTimeoutError:
                if time.monotonic() > deadline:
                    # It may come yet, as after no `ImageError`.
                    raise EngineError(
                        f"image '{reference}' cannot be pulled: not done in {PULL_TIMEOUT:.0f} s"
                    ) from None
                yield pull.progress()

    def _found(self, reference: str) -> dict[str, Any]:
        """The engine's description of an image that boxes may be made of: no box's disk, by whatever name."""
        description = self._inspect(reference)
        if _is_own(image_labels(description)) or is_base(reference):
            raise ImageError(f"image '{reference}' is not for boxes")
        return description

    def _tagged(self, tag: str) -> dict[str, Any]:
        """`_found` for a tag."""
        mark = self._tags.mark()
        description = self._tags.get(tag, mark)
        if description is None:
            description = self._found(tag)
            self._tags.put(tag, mark, description)
        return description

    def _inspect(self, reference: str) -> dict[str, Any]:
        with engine_errors(f"image {reference!r}"):
            return dict(self._engine.api.inspect_image(reference))

    def _join(self, reference: references.Reference) -> _Pull:
        self._registries.admit(reference)
        name = str(reference)
        with self._lock:
            pull = self._pulls.get(name)
            if pull is None:
                pull = self._pulls[name] = _Pull()
                # The pull has its own thread, so that it outlives a caller who gives up.
                threading.Thread(target=self._pull, args=(reference, pull), name=f"pull {name}", daemon=True).start()
            return pull

    def _pull(self, reference: references.Reference, pull: _Pull) -> None:
        log.info("pulling image %s", reference)
        error: BoxliteError | None = None
        what = f"image '{reference}' cannot be pulled"
        try:
            # Without a version the engine would fetch all tags of the repository.
            version = reference.digest or reference.tag
            for line in self._engine.api.pull(reference.repository, tag=version, stream=True, decode=True):
                pull.note(line)
                if "error" in line:
                    error = self._failed(reference, str(line["error"]))
        except Exception as exc:
            refused = refusal(exc)
            if refused is not None:
                error = self._failed(reference, refused)
            else:
                log.warning("%s: %s", what, exc)
                error = EngineError(f"{what}: the container engine does not answer")
        with self._lock:
            if self._pulls.pop(str(reference), None) is None:
                return  # `close` has answered the callers
        if error is None:
            pull.done.set_result(None)
        else:
            pull.done.set_exception(error)

    @staticmethod
    def _failed(reference: references.Reference, reason: str) -> BoxliteError:
        log.warning("image '%s' cannot be pulled: %s", reference, reason[:_MAX_LOGGED])
        return failure(reference, reason)


class _Pull:
    """A pull under way. One thread notes its progress, others look at it."""

    def __init__(self) -> None:
        self.done: Future[None] = Future()
        self._lock = threading.Lock()
        self._layers: dict[str, tuple[int, int]] = {}  # (current, total) bytes by layer

    def note(self, line: dict[str, Any]) -> None:
        """Take account of a line of the engine's report."""
        detail, layer = line.get("progressDetail") or {}, line.get("id", "")
        with self._lock:
            if line.get("status") == "Downloading" and detail.get("total"):
                self._layers[layer] = (detail.get("current", 0), detail["total"])
            elif line.get("status") == "Download complete" and layer in self._layers:
                total = self._layers[layer][1]
                self._layers[layer] = (total, total)

    def progress(self) -> PullProgress:
        with self._lock:
            layers = list(self._layers.values())
        return PullProgress(sum(current for current, _ in layers), sum(total for _, total in layers))


def _parsed(reference: str) -> references.Reference:
    """The reference with its tag. Raises `ImageError` when it is malformed."""
    try:
        return references.parse(reference).tagged()
    except InvalidArgumentError as exc:
        raise ImageError(exc.message) from exc


def _is_own(labels: Iterable[str]) -> bool:
    """Whether an image with these labels holds a box's disk, or helps with it."""
    return any(label.startswith(_OWN_LABELS) for label in labels)


def _names(image: dict[str, Any]) -> list[Image]:
    """An entry for each name of an image: its tags, and its digests from repositories of which it has no tag."""
    tags = [references.parse(name) for name in image["RepoTags"] or [] if "<none>" not in name and not is_base(name)]
    digests = [references.parse(name) for name in image["RepoDigests"] or [] if "<none>" not in name]
    tagged = {reference.repository for reference in tags}
    named = tags + [reference for reference in digests if reference.repository not in tagged]
    known_by = tuple(dict.fromkeys(reference.digest for reference in digests))
    at = _cached_at_ms(image)
    return [Image(str(reference), image["Id"], at, image["Size"], known_by) for reference in named]


def _cached_at_ms(image: dict[str, Any]) -> int:
    """When the image got its name on this engine; where the engine does not know that, when it was built."""
    for text in ((image.get("Metadata") or {}).get("LastTagTime"), image.get("Created")):
        with suppress(ValueError, TypeError):
            at = datetime.fromisoformat(str(text))
            if at.year > 1:
                return int(at.replace(tzinfo=at.tzinfo or UTC).timestamp() * 1000)
    return 0


def _asked_for(entry: dict[str, Any]) -> str:
    """The name of the image that a listed container was asked for."""
    return str((entry["Labels"] or {}).get(IMAGE_LABEL) or entry["Image"])


def _full(name: str) -> str:
    """The full name of the image that a container says it was made of; empty if it says an id."""
    try:
        return str(references.parse(name).tagged())
    except InvalidArgumentError:
        return ""
