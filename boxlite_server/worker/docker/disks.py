"""Disks as images of Docker Engine.

Every image of ours carries the labels of its cluster, worker and box, and a tag from the moment it is there.
So an image of ours without a tag is one that nobody wants any more: it goes as soon as no container and no
other image stands on it. Nothing is removed by force, and never an image that is not ours.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ... import ids, rpc
from ...errors import (
    BoxliteError,
    EngineError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
    ResourceExhaustedError,
)
from ..runtime import BoxRef, BoxSpec, BoxState, BoxStatus, Export, Owner, Settings, SnapshotSize
from .engine import Engine, engine_errors, is_full
from .labels import (
    BOX_LABEL,
    CLUSTER_LABEL,
    DISK_REPOSITORY,
    EXPORT_LABEL,
    EXPORT_REPOSITORY,
    GENERATION_LABEL,
    SNAPSHOT_LABEL,
    SNAPSHOT_REPOSITORY,
    WORKER_LABEL,
    owned_by,
)

if TYPE_CHECKING:
    from .runtime import DockerRuntime

COPY_TIMEOUT = 900.0  # seconds, of a call that copies a disk

log = logging.getLogger(__name__)


class DockerDisks:
    """The `Disks` of Docker Engine; `boxes` keeps the containers."""

    def __init__(self, boxes: DockerRuntime, engine: Engine, owner: Callable[[], Owner]) -> None:
        self._boxes = boxes
        self._engine = engine
        self._owner = owner

    # ---- snapshots ----

    def snapshot(self, box: BoxRef, snapshot_id: str) -> SnapshotSize:
        container = self._boxes.container(box)
        image = self._own(_snapshot(snapshot_id), box.box_id)
        if image is None:
            labels = self._labels(box.box_id) | {SNAPSHOT_LABEL: snapshot_id}
            image = self._commit(container, _snapshot(snapshot_id), labels)
        below = self._inspect(image["Parent"]) if image.get("Parent") else None
        return SnapshotSize(image["Size"] - (below["Size"] if below else 0), image["Size"])

    def remove_snapshot(self, box: BoxRef, snapshot_id: str) -> None:
        tag = _snapshot(snapshot_id)
        if self._own(tag, box.box_id) is None:
            return
        if not self._untag(tag):
            # The box was restored from it and stands on it: from now on it is nothing but the box's disk.
            with engine_errors("cannot tag an image"):
                self._engine.api.tag(tag, DISK_REPOSITORY, box.box_id)
            self._untag(tag)
        self._sweep()

    def list_snapshots(self) -> list[tuple[str, str]]:
        tagged = [
            (image, tag.partition(":")) for image in self._images(owned_by(self._owner())) for tag in _tags(image)
        ]
        return [(image["Labels"][BOX_LABEL], tag[2]) for image, tag in tagged if tag[0] == SNAPSHOT_REPOSITORY]

    def restore(self, box: BoxRef, snapshot_id: str, generation: int, spec: BoxSpec) -> BoxState:
        new = BoxRef(box.box_id, generation)
        older = [found for found in self._boxes.generations(box.box_id) if found.generation < generation]
        if not self._is_made(new):
            image = self._own(_snapshot(snapshot_id), box.box_id)
            if image is None:
                raise NotFoundError(f"snapshot {snapshot_id} of box {box.box_id} is not on this worker")
            for found in older:
                if self._boxes.inspect(found).status in (BoxStatus.RUNNING, BoxStatus.PAUSED):
                    raise InvalidStateError(f"box {box.box_id} is running; stop it first")
            # The new one first: if it cannot be made, the box is as it was.
            self._boxes.create_container(new, replace(spec, image=_snapshot(snapshot_id)), image)
        for found in older:
            self._boxes.delete(found, force=True)
        self._untag(_disk(box.box_id))
        self._sweep()
        return self._boxes.inspect(new)

    # ---- copies ----

    def clone(self, source: BoxRef, box: BoxRef, spec: BoxSpec) -> BoxState:
        if not self._is_made(box):
            container = self._boxes.container(source)
            disk = self._own(_disk(box.box_id), box.box_id)
            disk = disk or self._commit(container, _disk(box.box_id), self._labels(box.box_id))
            self._stand_on(disk, box, spec)
        return self._boxes.inspect(box)

    @contextmanager
    def export(self, box: BoxRef) -> Iterator[Export]:
        container = self._boxes.container(box)
        config = container["Config"]
        settings = Settings(
            env=dict(pair.split("=", 1) for pair in config["Env"] or [] if "=" in pair),
            working_dir=config["WorkingDir"] or "",
            entrypoint=tuple(config["Entrypoint"] or ()),
            cmd=tuple(config["Cmd"] or ()),
            user=config["User"] or "",
        )
        owner, name = self._owner(), ids.new_id()
        # Whatever looks for boxes must not see the helpers.
        labels = {CLUSTER_LABEL: owner.cluster_id, WORKER_LABEL: "", BOX_LABEL: "", GENERATION_LABEL: ""}
        labels |= {SNAPSHOT_LABEL: "", EXPORT_LABEL: owner.worker_id}
        tag, helper, api = f"{EXPORT_REPOSITORY}:{name}", f"boxlite-export-{name}", self._engine.api
        try:
            self._commit(container, tag, labels)
            with engine_errors(f"box {box.box_id} cannot be exported"):
                api.create_container(tag, ["none"], entrypoint=[], name=helper, labels=labels)
                answer = api._get(api._url("/containers/{0}/export", helper), stream=True)
                api._raise_for_status(answer)
            with closing(answer):
                yield Export(settings, _reading(answer, box))
        finally:
            with suppress(NotFoundError), engine_errors("cannot remove a helper"):
                api.remove_container(helper, v=True, force=True)
            self._untag(tag)
            self._sweep()

    def load(self, box: BoxRef, spec: BoxSpec, tar: Iterable[bytes]) -> BoxState:
        if not self._is_made(box):
            disk = self._import(box, tar)
            self._stand_on(disk, box, spec)
        return self._boxes.inspect(box)

    def _import(self, box: BoxRef, tar: Iterable[bytes]) -> dict[str, Any]:
        labels = " ".join(f"{key}={value}" for key, value in self._labels(box.box_id).items())
        pieces = iter(tar)
        api = self._engine.api
        try:
            with engine_errors("the disk cannot be imported"):
                answer = api._post(
                    api._url("/images/create"),
                    params={
                        "fromSrc": "-",
                        "repo": DISK_REPOSITORY,
                        "tag": box.box_id,
                        "changes": [f"LABEL {labels}"],
                    },
                    data=pieces,
                    headers={"Content-Type": "application/x-tar"},
                    timeout=COPY_TIMEOUT,
                )
            _raise_refusal(answer)
            # The engine stops at the end of the tar archive; only the end of `tar` says that all is well.
            for _ in pieces:
                pass
            disk = self._own(_disk(box.box_id), box.box_id)
            if disk is None:
                raise EngineError("the imported disk is not there")
            return disk
        except BaseException:
            self.forget(box.box_id)
            raise

    def _is_made(self, box: BoxRef) -> bool:
        """Raises `InvalidStateError` where there is a later generation."""
        try:
            self._boxes.inspect(box)
        except NotFoundError:
            return False
        return True

    def _stand_on(self, disk: Mapping[str, Any], box: BoxRef, spec: BoxSpec) -> None:
        try:
            self._boxes.create_container(box, replace(spec, image=_disk(box.box_id)), dict(disk))
        except BaseException:
            self.forget(box.box_id)
            raise

    # ---- going ----

    def forget(self, box_id: str) -> None:
        """Let go of every disk of a box that has no container any more."""
        images = self._images(owned_by(self._owner()))
        for image in images:
            if image["Labels"][BOX_LABEL] == box_id:
                for tag in _tags(image):
                    self._untag(tag)
        if images:
            self._sweep()

    def tidy(self) -> None:
        owner = self._owner()
        helpers = [f"{CLUSTER_LABEL}={owner.cluster_id}", f"{EXPORT_LABEL}={owner.worker_id}"]
        with engine_errors("cannot list the helpers of exports"):
            containers = self._engine.api.containers(all=True, filters={"label": helpers})
        for container in containers:
            with suppress(NotFoundError), engine_errors("cannot remove a helper"):
                self._engine.api.remove_container(container["Id"], v=True, force=True)
        # A snapshot is its coordinator's to remove; any other disk without a container never came to be one.
        for image in [*self._images(helpers), *self._images(owned_by(owner))]:
            for tag in _tags(image):
                if not tag.startswith(f"{SNAPSHOT_REPOSITORY}:"):
                    self._untag(tag)
        self._sweep()

    def _sweep(self) -> None:
        """Remove our images that have no tag and that nothing stands on."""
        owner = self._owner()
        progress = True
        while progress:  # one that goes may have been the last to stand on another
            unwanted = self._images(owned_by(owner), dangling=True)
            progress = sum(self._remove(image["Id"]) for image in unwanted) > 0

    def _untag(self, tag: str) -> bool:
        """Take the tag away, and the image too unless something stands on it or another tag is left. False:
        not done, because it is the last tag and a container stands on the image."""
        try:
            with engine_errors(f"cannot remove {tag}"):
                self._engine.api.remove_image(tag, noprune=True)
        except NotFoundError:
            return True
        except InvalidStateError:
            return False
        return True

    def _remove(self, image_id: str) -> bool:
        try:
            with engine_errors("cannot remove an image"):
                self._engine.api.remove_image(image_id, noprune=True)
        except BoxliteError as exc:
            log.debug("%s", exc)  # in use, as a rule; the next sweep tries again
            return False
        return True

    # ---- images ----

    def _commit(self, container: Mapping[str, Any], tag: str, labels: Mapping[str, str]) -> dict[str, Any]:
        """A container's disk as a tagged image; the container is paused meanwhile."""
        repository, _, name = tag.partition(":")
        api = self._engine.api
        changes = {"Labels": dict(labels)}
        if stop_signal := container["Config"].get("StopSignal"):
            changes["StopSignal"] = stop_signal
        with engine_errors("the disk cannot be copied"):
            answer = api._post_json(
                api._url("/commit"),
                data=changes,
                params={"container": container["Id"], "repo": repository, "tag": name, "pause": True},
                timeout=COPY_TIMEOUT,
            )
            api._raise_for_status(answer)
            return dict(api.inspect_image(tag))

    def _inspect(self, reference: str) -> dict[str, Any] | None:
        try:
            with engine_errors(f"image {reference}"):
                return dict(self._engine.api.inspect_image(reference))
        except NotFoundError:
            return None

    def _own(self, tag: str, box_id: str) -> dict[str, Any] | None:
        """The image, if there is one and it is that box's."""
        image = self._inspect(tag)
        labels = ((image or {}).get("Config") or {}).get("Labels") or {}
        return image if self._labels(box_id).items() <= labels.items() else None

    def _images(self, labels: list[str], **filters: Any) -> list[dict[str, Any]]:
        with engine_errors("cannot list the disks"):
            return list(self._engine.api.images(all=True, filters={"label": labels, **filters}))

    def _labels(self, box_id: str) -> dict[str, str]:
        owner = self._owner()
        return {CLUSTER_LABEL: owner.cluster_id, WORKER_LABEL: owner.worker_id, BOX_LABEL: box_id}


def _snapshot(snapshot_id: str) -> str:
    return f"{SNAPSHOT_REPOSITORY}:{snapshot_id}"


def _disk(box_id: str) -> str:
    return f"{DISK_REPOSITORY}:{box_id}"


def _tags(image: Mapping[str, Any]) -> list[str]:
    """Its tags that are ours to take away."""
    return [tag for tag in image["RepoTags"] or () if tag.startswith("boxlite/")]


def _reading(answer: Any, box: BoxRef) -> Iterator[bytes]:
    with engine_errors(f"box {box.box_id} cannot be exported"):
        yield from answer.iter_content(rpc.CHUNK_BYTES)


def _raise_refusal(answer: Any) -> None:
    """The engine says late and in several ways that an archive is none."""
    try:
        last = json.loads(answer.text.strip().rpartition("\n")[2])
    except ValueError:
        last = {}
    text = last.get("error") or last.get("message") or (answer.text if answer.status_code >= 300 else "")
    if not text:
        return
    if is_full(text):
        raise ResourceExhaustedError(f"the disk cannot be imported: {text} (the disk of the container engine is full)")
    raise InvalidArgumentError(f"the archive's file system cannot be unpacked: {text}")
