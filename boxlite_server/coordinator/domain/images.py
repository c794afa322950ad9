"""Finds, pulls and removes the images of the whole fleet.

Each question goes to all workers that can be reached, at once and with a short deadline, and workers that do not answer
are left out. The cache of images belongs to the workers and is shared by all prefixes. A tenant sees of it what
everybody could pull, what the operator has brought, and what the tenant has pulled itself; it removes only the last.

`tenant`: the prefix that asks; None: an operator, who sees and removes all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from typing import NamedTuple

from ... import errors, ids, references, rpc
from ..._gen import worker_pb2 as pb
from ..fleet.calls import TRY_ELSEWHERE, Calls
from ..fleet.placement import NOTHING, choose
from ..fleet.pulls import FailedPulls
from ..fleet.registry import Fleet
from ..loops import Tasks
from ..store import Pulled, Store, Worker

log = logging.getLogger(__name__)


class Image(NamedTuple):
    """One version of a named image. `workers`: ids of the workers that have it; `cached_at`: Unix seconds."""

    reference: str
    id: str
    cached_at: float
    size_bytes: int
    digests: tuple[str, ...]
    workers: tuple[str, ...]
    is_private: bool = False  # its registry gets credentials of a worker's host

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


Pulling = AsyncGenerator[PullProgress | Image, None]


class Images:
    """The images of all workers, over the store and the fleet; `clock` gives Unix seconds."""

    def __init__(self, store: Store, fleet: Fleet, calls: Calls, clock: Callable[[], float]) -> None:
        self._store = store
        self._fleet = fleet
        self._calls = calls
        self._tasks = Tasks()  # pulls under way
        self.pulls = FailedPulls(clock)

    async def close(self) -> None:
        """Follow no pull any more; those that take credentials stay noted as begun."""
        await self._tasks.close()

    async def all(self, tenant: str | None = None) -> list[Image]:
        """All images, sorted by name; one entry for each version of a name."""
        return (await self._ask(tenant))[0]

    async def find(self, name: str, tenant: str | None = None) -> tuple[list[Image], list[Image]]:
        """The images of that name or digest, and all versions of all tags of the same repository.

        The first image is the one that the name means: the tag `latest`, else the newest.
        Raises NotFoundError, and UpstreamUnavailableError when a worker that does not answer may have the image.
        """
        images, silent = await self._ask(tenant)
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

    async def admit(self, name: str, tenant: str | None) -> None:
        """See that a tenant may make a box of the image. A private one that only others have pulled is pulled anew, so
        that its registry decides; an image that is named by its id has to be one that the tenant sees.

        Raises ImageError, and what `pull` raises.
        """
        if tenant is None:
            return
        if references.is_digest(name):
            try:
                await self.find(name, tenant)
            except errors.NotFoundError as exc:
                raise errors.ImageError(exc.message) from None
            return
        repository = _repository(name)
        pulled = (await self._store.pulled(repository)).get(repository)
        if pulled is not None and pulled.is_private and tenant not in pulled.holders:
            async for _ in self.pull(name, tenant):
                pass

    async def note_pulled(self, name: str, tenant: str | None, worker_id: str, *, is_private: bool) -> None:
        """Note that the image, which was missing, was pulled on a worker, for a tenant or, with None, an operator."""
        async with self._store.transaction(durable=False) as tx:
            if tenant is not None:
                await tx.note_pull(_repository(name), tenant, is_private=is_private)
            await tx.tell(rpc.TENANT.get().prefix, "image.pulled", name=name, worker_id=worker_id)

    def pull(self, reference: str, tenant: str | None = None) -> Pulling:
        """Pull an image on the least loaded worker: yields progress at least every second, and the image last.
        When a worker cannot do it, for a reason that may be its own, the next one is tried. A pull goes on, and is
        noted, when its caller leaves.

        Raises ImageError, UpstreamUnavailableError and ResourceExhaustedError when the image cannot be pulled.
        """
        return self._to_the_end(self._pull_somewhere(reference, tenant))

    async def pull_at(self, worker: Worker, reference: str, tenant: str | None) -> None:
        """Pull an image on that worker; raises as `pull` does."""
        async for _ in self._to_the_end(self._pull_at(worker, reference, tenant)):
            pass

    async def _to_the_end(self, pulling: Pulling) -> Pulling:
        """The events of a pull that is followed to its end, whether anybody listens or not: its worker goes on too."""
        events: asyncio.Queue[PullProgress | Image | Exception] = asyncio.Queue()

        async def follow() -> None:
            try:
                async for event in pulling:
                    events.put_nowait(event)
            except Exception as exc:
                events.put_nowait(exc)
            except asyncio.CancelledError:
                events.put_nowait(errors.UpstreamUnavailableError("the coordinator is shutting down; ask again"))
                raise

        self._tasks.begin(ids.new_id(), follow)
        while not isinstance(event := await events.get(), Exception):
            yield event
            if isinstance(event, Image):
                return
        raise event

    async def _pull_somewhere(self, reference: str, tenant: str | None) -> Pulling:
        tried: dict[str, errors.BoxliteError] = {}
        while True:
            untried = [c for c in await self._fleet.candidates() if c.worker.name not in tried]
            worker = choose("pull", NOTHING, untried, tried, last=self.pulls.of(reference))
            try:
                async for event in self._pull_at(worker, reference, tenant):
                    yield event
                return
            except TRY_ELSEWHERE as exc:
                log.warning("%s cannot be pulled on %s: %s", reference, worker.name, exc)
                tried[worker.name] = exc
                if isinstance(exc, errors.LocalImageError):
                    self.pulls.note(reference, worker.id)

    async def _pull_at(self, worker: Worker, reference: str, tenant: str | None) -> Pulling:
        """Pull on one worker. What takes credentials of its host is noted before it begins: from then on it is hidden
        from everybody who has not pulled it, also if the coordinator is killed before it is noted whose it is."""
        request = pb.PullImageRequest(reference=reference, ask_first=tenant is not None)
        try:
            async for event in self._events(worker, request, tenant):
                yield event
            return
        except errors.PrivateImageError:
            assert tenant is not None
        request.ask_first = False
        pull_id = ids.new_id()
        await self._store.begin_private_pull(pull_id, _repository(reference), tenant)
        try:
            async for event in self._events(worker, request, tenant):
                yield event
        except errors.ImageError:  # nothing has come; after any other error something may come yet
            await self._store.end_private_pull(pull_id)
            raise

    async def _events(self, worker: Worker, request: pb.PullImageRequest, tenant: str | None) -> Pulling:
        async with contextlib.aclosing(self._calls.pull_image(worker, request)) as events:
            async for event in events:
                if event.HasField("image"):
                    await self._note(event.image, tenant, worker.id)
                    yield _image(event.image, worker.id)
                    return
                yield PullProgress(event.progress.current_bytes, event.progress.total_bytes)
        raise errors.EngineError(f"the pull of {request.reference} ended without an image")

    async def _note(self, image: pb.Image, tenant: str | None, worker_id: str) -> None:
        """Note a pull that has brought something, or that not everybody could have done. Of any other image it stays
        true that the operator has brought it."""
        if image.pulled:
            await self.note_pulled(image.reference, tenant, worker_id, is_private=image.private)
        elif tenant is not None:
            repository = _repository(image.reference)
            if image.private or repository in await self._store.pulled(repository):
                await self._store.note_pull(repository, tenant, is_private=image.private)

    async def remove(self, name: str, tenant: str | None = None) -> None:
        """Remove an image from every worker that has it; a name without a tag means all its tags. Images of a
        repository from which other prefixes have pulled too are only hidden from the tenant.

        Raises NotFoundError, PermissionDeniedError for an image that the tenant sees and has not pulled, and
        InvalidStateError when a box uses it.
        """
        found, versions = await self.find(name, tenant)
        if tenant is not None and not await self._drop(found, tenant):
            return
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
        if tenant is not None and set(versions) <= set(found):
            await self._store.drop_pull(found[0].repository, tenant)

    async def _drop(self, found: list[Image], tenant: str) -> bool:
        """Whether images that a tenant removes are its alone. Those of others too are hidden from the tenant."""
        pulled = await self._store.pulled()
        repositories = {image.repository for image in found}
        if not all(name in pulled and tenant in pulled[name].holders for name in repositories):
            raise errors.PermissionDeniedError(
                f"image {found[0].reference} is there for all prefixes; only an operator can remove it"
            )
        if all(pulled[name].holders == {tenant} for name in repositories):
            return True
        for repository in repositories:
            await self._store.drop_pull(repository, tenant)
        return False

    async def _ask(self, tenant: str | None) -> tuple[list[Image], list[str]]:
        """The images of all workers that answer, as far as the tenant sees them, and the names of the workers that do
        not answer."""
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
        images = [found[key] for key in sorted(found)]
        if tenant is not None:
            pulled = await self._store.pulled()
            images = [image for image in images if _is_seen(image, tenant, pulled.get(image.repository))]
        return images, silent


def _image(message: pb.Image, worker_id: str) -> Image:
    return Image(
        reference=message.reference,
        id=message.image_id,
        cached_at=message.cached_at_ms / 1000,
        size_bytes=message.size_bytes,
        digests=tuple(message.digests),
        workers=(worker_id,),
        is_private=message.private,
    )


def _merged(one: Image, other: Image) -> Image:
    """The entry of one version that two workers have."""
    return one._replace(
        cached_at=min(one.cached_at, other.cached_at),
        digests=tuple(dict.fromkeys(one.digests + other.digests)),
        workers=one.workers + other.workers,
        is_private=one.is_private or other.is_private,
    )


def _is_seen(image: Image, tenant: str, pulled: Pulled | None) -> bool:
    """Whether a tenant sees an image, from whose repository that was `pulled`; None: nothing by any tenant."""
    return pulled is None or tenant in pulled.holders or not (image.is_private or pulled.is_private)


def _repository(name: str) -> str:
    """The repository of an image's name. Raises ImageError for a malformed name."""
    try:
        return references.parse(name).repository
    except errors.InvalidArgumentError as exc:
        raise errors.ImageError(exc.message) from None


def _full(reference: str) -> str:
    try:
        return str(references.parse(reference).tagged())
    except errors.InvalidArgumentError:
        return reference
