"""Disks as images of Docker Engine.

Every image of a worker carries the labels of its cluster, worker and box, and has a tag from the moment it exists.
So an image of the worker without a tag is garbage: it is removed as soon as no container and no other image is based
on it. The last tag of an image that a container is based on cannot be removed: it is replaced by a tag for garbage,
which goes once the container is gone. Nothing is removed by force, and no image of somebody else is touched.
"""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import Any

from ....errors import (
    BoxliteError,
    EngineError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
)
from ...runtime import BoxRef, BoxSpec, BoxState, BoxStatus, Export, FileKind, Owner, Settings, SnapshotSize
from ..config import anonymous_volumes, is_supervised, own_entrypoint, was_told
from ..containers import Containers
from ..engine import Engine, act_on_all, disk_is_full, engine_errors, is_full
from ..files import DockerArchive, DockerFiles
from ..labels import (
    BOX_LABEL,
    DISK_REPOSITORY,
    GARBAGE_REPOSITORY,
    SNAPSHOT_LABEL,
    SNAPSHOT_REPOSITORY,
    helpers_of,
    image_labels,
    owned_by,
    owner_labels,
)
from .bases import Bases
from .copies import Copies, Scratch, remove_helper

_TOO_DEEP = "max depth exceeded"  # what the engine says where a disk would get too many layers

log = logging.getLogger(__name__)


class DockerDisks:
    """The `Disks` of Docker Engine."""

    def __init__(
        self, containers: Containers, bases: Bases, copies: Copies, engine: Engine, owner: Callable[[], Owner]
    ) -> None:
        self._containers = containers
        self._bases = bases
        self._copies = copies
        self._engine = engine
        self._owner = owner

    # ---- snapshots ----

    def snapshot(self, box: BoxRef, snapshot_id: str) -> SnapshotSize:
        container = self._containers.get(box)
        image = self._own(_snapshot(snapshot_id), box.box_id)
        if image is None:
            labels = self._labels(box.box_id) | {SNAPSHOT_LABEL: snapshot_id}
            image = self._committed(container, _snapshot(snapshot_id), labels)
        below = self._inspect(image["Parent"]) if image.get("Parent") else None
        return SnapshotSize(image["Size"] - (below["Size"] if below else 0), image["Size"])

    def remove_snapshot(self, box: BoxRef, snapshot_id: str) -> None:
        tag = _snapshot(snapshot_id)
        if self._own(tag, box.box_id) is not None:
            self._discard(tag)
            self._sweep()

    def list_snapshots(self) -> list[tuple[str, str]]:
        with suppress(BoxliteError):
            self._sweep()  # the coordinator asks once a minute; meanwhile somebody may have removed a container
        tagged = [
            (image, tag.partition(":")) for image in self._images(owned_by(self._owner())) for tag in _tags(image)
        ]
        return [(image["Labels"][BOX_LABEL], tag[2]) for image, tag in tagged if tag[0] == SNAPSHOT_REPOSITORY]

    def restore(self, box: BoxRef, snapshot_id: str, generation: int, spec: BoxSpec) -> BoxState:
        new = BoxRef(box.box_id, generation)
        held = self._containers.up_to(new)
        older = [found for found in held if found != new]
        if new in held:
            state = self._containers.inspect(new)
        else:
            image = self._own(_snapshot(snapshot_id), box.box_id)
            if image is None:
                raise NotFoundError(f"snapshot {snapshot_id} of box {box.box_id} is not on this worker")
            for found in older:
                if self._containers.inspect(found).status in (BoxStatus.RUNNING, BoxStatus.PAUSED):
                    raise InvalidStateError(f"box {box.box_id} is running; stop it first")
            base = self._bases.of_disk(image, _snapshot(snapshot_id))
            # The new container comes first: if it cannot be made, the box is unchanged.
            state = self._containers.create(new, replace(spec, image=_snapshot(snapshot_id)), base)
        act_on_all(lambda found: self._containers.delete(found, force=True), older)
        self._untag(_disk(box.box_id))
        self._sweep()
        return state

    # ---- copies ----

    def clone(self, source: BoxRef, box: BoxRef, spec: BoxSpec) -> BoxState:
        if box in self._containers.up_to(box):
            return self._containers.inspect(box)
        container = self._containers.get(source)
        disk = self._own(_disk(box.box_id), box.box_id)
        disk = disk or self._committed(container, _disk(box.box_id), self._labels(box.box_id))
        return self._create_on(disk, box, spec)

    def load(self, box: BoxRef, spec: BoxSpec, tar: Iterable[bytes]) -> BoxState:
        if box in self._containers.up_to(box):
            return self._containers.inspect(box)
        return self._create_on(self._import(box, tar), box, spec)

    def _import(self, box: BoxRef, tar: Iterable[bytes]) -> dict[str, Any]:
        """Make the box's disk from the archive. Returns the engine's description of it."""
        pieces = iter(tar)
        try:
            labels, what = self._labels(box.box_id), "the disk cannot be imported"
            if refusal := self._copies.import_disk(pieces, _disk(box.box_id), labels, what):
                if is_full(refusal):
                    raise disk_is_full(f"{what}: {refusal}")
                raise InvalidArgumentError(f"the archive's file system cannot be unpacked: {refusal}")
            # The engine stops at the end of the tar archive, but `tar` may still raise before its own end.
            for _ in pieces:
                pass
            disk = self._own(_disk(box.box_id), box.box_id)
            if disk is None:
                raise EngineError("the imported disk is not there")
            return disk
        except BaseException:
            self.forget(box.box_id)
            raise

    def _create_on(self, disk: Mapping[str, Any], box: BoxRef, spec: BoxSpec) -> BoxState:
        """Make the box on its disk, given as the engine describes it. Removes the disk if that fails."""
        try:
            base = self._bases.of_disk(disk, _disk(box.box_id))
            if base is not disk:
                self._sweep()  # the disk has lost its tag
            return self._containers.create(box, replace(spec, image=_disk(box.box_id)), base)
        except BaseException:
            self.forget(box.box_id)
            raise

    @contextmanager
    def export(self, box: BoxRef) -> Iterator[Export]:
        container = self._containers.get(box)
        try:
            with Scratch(self._engine, self._owner()) as made:
                self._commit(container, made.tag, made.labels)
                helper = made.container(made.tag)
                with engine_errors(f"box {box.box_id} cannot be exported"):
                    answer = self._engine.call("GET", f"/containers/{helper['Id']}/export", stream=True).check()
                with closing(DockerArchive(answer)) as disk:
                    yield Export(_settings(container), iter(disk))
        finally:
            self._sweep()

    # ---- removing ----

    def forget(self, box_id: str) -> None:
        """Remove every disk of a box that has no container any more; a disk that cannot be removed holds up none of
        the others. Raises why, once all were tried."""
        images = self._images(owned_by(self._owner()))
        own = [tag for image in images if image["Labels"][BOX_LABEL] == box_id for tag in _tags(image)]
        try:
            act_on_all(self._discard, own)
        finally:
            if images:
                self._sweep()
            self._bases.sweep()

    def tidy(self) -> None:
        owner = self._owner()
        helpers = helpers_of(owner)
        with engine_errors("cannot list the helpers"):
            containers = self._engine.api.containers(all=True, filters={"label": helpers})
        # Only the coordinator removes a snapshot. Any other disk goes, unless a container is based on it: its box was
        # never made.
        images = [*self._images(helpers), *self._images(owned_by(owner))]
        tags = [tag for image in images for tag in _tags(image) if not tag.startswith(f"{SNAPSHOT_REPOSITORY}:")]
        try:
            act_on_all(lambda container: remove_helper(self._engine, container["Id"]), containers)
            act_on_all(self._untag, tags)
        finally:
            self._sweep()

    def _sweep(self) -> None:
        """Remove the owner's images, those of helpers included, that have no tag, or only that of garbage, and that
        nothing is based on. While an image is being made, this is left to the end of that."""
        self._copies.sweep(self._remove_unwanted)

    def _remove_unwanted(self) -> None:
        mine, helpers = owned_by(self._owner()), helpers_of(self._owner())
        garbage = self._images(mine, reference=GARBAGE_REPOSITORY)
        act_on_all(self._untag, [tag for image in garbage for tag in _tags(image)])
        progress = True
        while progress:  # a removed image may have been the last that was based on another
            unwanted = self._images(mine, dangling=True) + self._images(helpers, dangling=True)
            progress = sum(self._remove(image["Id"]) for image in unwanted) > 0

    def _discard(self, tag: str) -> None:
        """Remove the tag, and the image with it as soon as nothing is based on it."""
        if not self._untag(tag):
            with suppress(NotFoundError), engine_errors("cannot tag an image"):
                self._engine.api.tag(tag, GARBAGE_REPOSITORY, tag.partition(":")[2])
            self._untag(tag)

    def _untag(self, tag: str) -> bool:
        """Remove the tag, and the image too unless something is based on it or it has another tag.

        False: the tag is still there, because it is the image's last one and a container is based on the image.
        """
        try:
            with engine_errors(f"cannot remove {tag}"):
                self._engine.api.remove_image(tag, noprune=True)
        except NotFoundError:
            return True
        except InvalidStateError:
            return False
        except EngineError:
            # The engine fails in the middle when somebody else removes the image, its parent or its child meanwhile.
            if self._inspect(tag) is not None:
                raise
        return True

    def _remove(self, image_id: str) -> bool:
        try:
            with engine_errors("cannot remove an image"):
                self._engine.api.remove_image(image_id, noprune=True)
        except BoxliteError as exc:
            log.debug("%s", exc)  # usually because the image is in use; the next sweep tries again
            return False
        return True

    # ---- images ----

    def _committed(self, container: dict[str, Any], tag: str, labels: Mapping[str, str]) -> dict[str, Any]:
        """Commit a container's disk. Returns the engine's description of the image."""
        self._commit(container, tag, labels)
        with engine_errors("the disk cannot be copied"):
            return dict(self._engine.api.inspect_image(tag))

    def _commit(self, container: dict[str, Any], tag: str, labels: Mapping[str, str]) -> None:
        """Copy a container's disk to a tagged image. The container is paused meanwhile."""
        settings = {"Labels": dict(labels), **_kept_settings(container)}
        if not anonymous_volumes(container):
            try:
                self._copies.commit(container["Id"], tag, settings, "the disk cannot be copied")
                return
            except EngineError as exc:
                if _TOO_DEEP not in exc.message:
                    raise
        self._commit_copy(container, tag, labels)

    def _commit_copy(self, container: dict[str, Any], tag: str, labels: Mapping[str, str]) -> None:
        """Copy to a tagged image what no commit of the container holds.

        The container was made by an earlier version: it has anonymous volumes, or so many layers that the engine adds
        no other. Raises `InvalidStateError` while it runs, since it would have to stay paused for long.
        """
        if container["State"]["Running"]:
            raise InvalidStateError(
                "the box was made by an earlier version of this worker, and its disk can be copied only while the box "
                "is stopped; stop it first"
            )
        with Scratch(self._engine, self._owner()) as made:
            copy = made.container(self._base_of_copy(container, made)["Id"])
            source, target = DockerFiles(self._engine, container), DockerFiles(self._engine, copy)
            for path in anonymous_volumes(container):
                state = source.stat(path)
                directory = state.target if state and state.kind is FileKind.LINK else path
                with closing(source.get(directory)) as content:
                    target.put(posixpath.dirname(directory), content)
            # The engine adds the labels of the copy, except those that are given.
            given = {**dict.fromkeys(made.labels, ""), **container["Config"]["Labels"], **labels}
            settings = {**container["Config"], **_kept_settings(container), "Volumes": None, "Labels": given}
            self._copies.commit(copy["Id"], tag, settings, "the disk cannot be copied")
        self._sweep()

    def _base_of_copy(self, container: dict[str, Any], made: Scratch) -> Mapping[str, Any]:
        """A base with the files of a stopped container, but for those in anonymous volumes."""
        try:
            self._copies.commit(container["Id"], made.tag, {"Labels": made.labels}, "the disk cannot be copied")
        except EngineError as exc:
            if _TOO_DEEP not in exc.message:
                raise
            return self._bases.merged(container["Id"], made)
        with engine_errors("the disk cannot be copied"):
            return self._bases.of_disk(self._engine.api.inspect_image(made.tag), made.tag)

    def _inspect(self, reference: str) -> dict[str, Any] | None:
        try:
            with engine_errors(f"image {reference}"):
                return dict(self._engine.api.inspect_image(reference))
        except NotFoundError:
            return None

    def _own(self, tag: str, box_id: str) -> dict[str, Any] | None:
        """The engine's description of the tagged image; None if there is none, or it is not that box's."""
        image = self._inspect(tag)
        return image if image and self._labels(box_id).items() <= image_labels(image).items() else None

    def _images(self, labels: list[str], **filters: Any) -> list[dict[str, Any]]:
        with engine_errors("cannot list the disks"):
            return list(self._engine.api.images(all=True, filters={"label": labels, **filters}))

    def _labels(self, box_id: str) -> dict[str, str]:
        return {**owner_labels(self._owner()), BOX_LABEL: box_id}


def _snapshot(snapshot_id: str) -> str:
    return f"{SNAPSHOT_REPOSITORY}:{snapshot_id}"


def _disk(box_id: str) -> str:
    return f"{DISK_REPOSITORY}:{box_id}"


def _tags(image: Mapping[str, Any]) -> list[str]:
    """The image's tags that a worker has made and may remove."""
    return [tag for tag in image["RepoTags"] or () if tag.startswith("boxlite/")]


def _kept_settings(container: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a container that a commit of it would lose, or would take over with the supervisor in them."""
    settings: dict[str, Any] = {}
    if stop_signal := container["Config"].get("StopSignal"):
        settings["StopSignal"] = stop_signal
    if was_told(container):
        settings |= {name: container["Config"][name] for name in ("Env", "WorkingDir")}
    if is_supervised(container) or was_told(container):
        settings["Entrypoint"] = own_entrypoint(container)  # an empty one replaces the container's too
        settings["Cmd"] = container["Config"]["Cmd"] or []
    return settings


def _settings(container: Mapping[str, Any]) -> Settings:
    config = container["Config"]
    return Settings(
        env=dict(pair.split("=", 1) for pair in config["Env"] or [] if "=" in pair),
        working_dir=config["WorkingDir"] or "",
        entrypoint=tuple(own_entrypoint(container)),
        cmd=tuple(config["Cmd"] or ()),
        user=config["User"] or "",
        stop_signal=config.get("StopSignal") or "",
    )
