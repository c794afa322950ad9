"""Finds, pulls and removes the images of the whole fleet.

Nothing is stored here: each question goes to all workers that can be reached, at once and with a short deadline, and
workers that do not answer are left out. The cache of images belongs to the workers and is shared by all prefixes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import NamedTuple

from ... import errors, references
from ..._gen import worker_pb2 as pb
from ..fleet.calls import TRY_ELSEWHERE, Calls
from ..fleet.placement import NOTHING, not_placed, place
from ..fleet.pulls import FailedPulls
from ..fleet.registry import Fleet
from ..store import Store

log = logging.getLogger(__name__)


class Image(NamedTuple):
    """One version of a named image. `workers`: ids of the workers that have it; `cached_at`: Unix seconds."""

    reference: str
    id: str
    cached_at: float
    size_bytes: int
    digests: tuple[str, ...]
    workers: tuple[str, ...]

    @property
    def repository(self) -> str:
        return references.parse(self.reference).repository

    @property
    def tag(self) -> str:
        return references.parse(self.reference).tag

    def is_called(self, name: str) -> bool:
        """Whether `name` means this image: a digest, a name with a tag, or a name alone, which means all its
        tags."""
        if references.is_digest(name):
            return any(digest.startswith(name) for digest in (self.id, *self.digests))
        wanted = references.parse(name)
        return (
            wanted.repository == self.repository
            and wanted.tag in ("", self.tag)
            and wanted.digest in ("", self.id, *self.digests)
        )


class PullProgress(NamedTuple):
    """The progress of a pull, summed over all parts known so far."""

    current_bytes: int
    total_bytes: int


class Images:
    """The images of all workers, over the store and the fleet."""

    def __init__(self, store: Store, fleet: Fleet, calls: Calls, pulls: FailedPulls) -> None:
        self._store = store
        self._fleet = fleet
        self._calls = calls
        self._pulls = pulls

    async def all(self) -> list[Image]:
        """All images, sorted by name; one entry for each version of a name."""
        return (await self._ask())[0]

    async def find(self, name: str) -> tuple[list[Image], list[Image]]:
        """The images of that name or digest, and all versions of all tags of the same repository.

        The first image is the one that the name means: the tag `latest`, else the newest.
        Raises NotFoundError, and UpstreamUnavailableError when a worker that does not answer may have the image.
        """
        images, silent = await self._ask()
        try:
            found = [image for image in images if image.is_called(name)]
        except errors.InvalidArgumentError as exc:
            raise errors.NotFoundError(f"image not found: {exc.message}") from None
        if not found and silent:
            raise errors.UpstreamUnavailableError(
                f"image {name} is on none of the workers that answer; {', '.join(silent)} did not answer",
                f"image {name} is on none of the workers that answer; others did not answer",
            )
        if not found:
            raise errors.NotFoundError(f"image not found: {name}")
        found.sort(key=lambda image: (image.tag != references.DEFAULT_TAG, -image.cached_at))
        return found, [image for image in images if image.repository == found[0].repository]

    async def pull(self, reference: str) -> AsyncGenerator[PullProgress | Image, None]:
        """Pull an image on the least loaded worker: yields progress at least every second, and the image last.
        When a worker cannot do it, for a reason that may be its own, the next one is tried.

        Raises ImageError, UpstreamUnavailableError and ResourceExhaustedError when the image cannot be pulled.
        """
        request = pb.PullImageRequest(reference=reference)
        tried: dict[str, errors.BoxliteError] = {}
        while True:
            untried = [c for c in await self._fleet.candidates() if c.worker.name not in tried]
            placement = place(NOTHING, untried, last=self._pulls.of(reference))
            if not placement.workers:
                raise not_placed("pull", NOTHING, placement, tried)
            worker = placement.workers[0]
            try:
                events = self._calls.pull_image(worker, request)
                async with contextlib.aclosing(events):
                    async for event in events:
                        if event.HasField("image"):
                            yield _image(event.image, worker.id)
                            return
                        yield PullProgress(event.progress.current_bytes, event.progress.total_bytes)
                raise errors.EngineError(f"the pull of {reference} ended without an image")
            except TRY_ELSEWHERE as exc:
                log.warning("%s cannot be pulled on %s: %s", reference, worker.name, exc)
                tried[worker.name] = exc
                if isinstance(exc, errors.LocalImageError):
                    self._pulls.note(reference, worker.id)

    async def remove(self, name: str) -> None:
        """Remove an image from every worker that has it; a name without a tag means all its tags.

        Raises NotFoundError, and InvalidStateError when a box uses it.
        """
        found, _ = await self.find(name)
        doomed = {image.reference for image in found} | {f"{image.repository}@{image.id}" for image in found}
        for used in await self._store.images_of_boxes():
            if _full(used) in doomed:
                raise errors.InvalidStateError(f"image {used} is in use; remove the boxes made of it first")
        orders = [(image.reference, worker_id) for image in found for worker_id in image.workers]
        results = await asyncio.gather(
            *(
                self._calls.remove_image(worker_id, pb.RemoveImageRequest(reference=reference))
                for reference, worker_id in orders
            ),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _ask(self) -> tuple[list[Image], list[str]]:
        """The images of all workers that answer, and the names of those that do not."""
        workers = [c.worker for c in await self._fleet.candidates()]
        reachable = [worker for worker in workers if self._fleet.is_reachable(worker)]
        answers = await asyncio.gather(
            *(self._calls.list_images(worker) for worker in reachable),
            return_exceptions=True,
        )
        found: dict[tuple[str, str], Image] = {}
        silent = [worker.name for worker in workers if worker not in reachable]
        for worker, answer in zip(reachable, answers, strict=True):
            if isinstance(answer, errors.BoxliteError):
                log.warning("worker %s does not tell its images: %s", worker.name, answer)
                silent.append(worker.name)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                for message in answer.images:
                    image = _image(message, worker.id)
                    key = (image.reference, image.id)
                    found[key] = _merged(found[key], image) if key in found else image
        return [found[key] for key in sorted(found)], silent


def _image(message: pb.Image, worker_id: str) -> Image:
    return Image(
        reference=message.reference,
        id=message.image_id,
        cached_at=message.cached_at_ms / 1000,
        size_bytes=message.size_bytes,
        digests=tuple(message.digests),
        workers=(worker_id,),
    )


def _merged(one: Image, other: Image) -> Image:
    """The entry of one version that two workers have."""
    return one._replace(
        cached_at=min(one.cached_at, other.cached_at),
        digests=tuple(dict.fromkeys(one.digests + other.digests)),
        workers=one.workers + other.workers,
    )


def _full(reference: str) -> str:
    try:
        return str(references.parse(reference).tagged())
    except errors.InvalidArgumentError:
        return reference
