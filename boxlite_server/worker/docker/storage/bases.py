"""Bases: the images that containers of boxes are made of.

Most images are good as they are. A box of one of these would lose files, or be stuck:

- The image declares volumes (`VOLUME`). The engine would mount an anonymous volume at each of these paths, and neither
  a commit nor an export holds what is written there.
- The image has too many layers. The engine stacks only so many, and a snapshot adds one.

Such an image is made over into a base, which has the same files and settings, no declared volumes, and at most
`max_layers` layers. To take the volumes out, the engine loads an image that consists of another configuration and of
layers that the engine holds already; no file is copied. Too many layers are merged into one: the export of a container
is streamed into an import.

An engine that keeps its images in containerd loads no image without its layers. There, layers are always merged, and a
commit adds the settings.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import posixpath
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any

from ....errors import EngineError, ImageError, InvalidStateError, NotFoundError
from ...runtime import FileKind, Owner
from ..engine import Engine, disk_is_full, engine_errors, is_full
from ..files import DockerArchive, DockerFiles
from ..labels import BASE_REPOSITORY, is_base
from .copies import COPY_TIMEOUT, Copies, Scratch

MAX_LAYERS = 100  # of a base; the engine's own limit is 125, and each snapshot that is restored adds a layer
MAX_VOLUMES = 256  # that an image may declare
_HEAD_BYTES = 64 * 1024  # of an archive; more than its first entry takes

log = logging.getLogger(__name__)


class Bases:
    """Makes, finds and removes bases. All workers of an engine share those of images that are nobody's disk."""

    def __init__(
        self, engine: Engine, copies: Copies, owner: Callable[[], Owner], max_layers: int = MAX_LAYERS
    ) -> None:
        self._engine = engine
        self._copies = copies
        self._owner = owner
        self._max_layers = max_layers
        self._lock = threading.Lock()
        self._making: dict[str, tuple[threading.Lock, int]] = {}  # (lock, how many threads want it) by tag

    # ---- making ----

    def of_image(self, image: Mapping[str, Any]) -> Mapping[str, Any]:
        """The base for boxes of an image, made where it is missing; both as the engine describes them. Raises
        `ImageError` when the image declares too many volumes."""
        return self._base(image, _tag(image["Id"]))

    def of_disk(self, image: Mapping[str, Any], tag: str) -> Mapping[str, Any]:
        """The base for a box on a disk with a tag. A disk that has to be made over loses its tag to its base."""
        return self._base(image, tag)

    def _base(self, image: Mapping[str, Any], tag: str) -> Mapping[str, Any]:
        if self._is_base(image):
            return image
        with self._alone(tag):
            made = self._inspect(tag)
            if made is None or not self._is_base(made):
                log.info("making %s of image %s", tag, image["Id"])
                self._make(image, tag)
                made = self._inspect(tag)
        if made is None:
            raise EngineError(f"the image {tag}, which has just been made, is not there")
        return made

    def _is_base(self, image: Mapping[str, Any]) -> bool:
        return not _volumes(image) and len(_layers(image)) <= self._max_layers

    @contextmanager
    def _alone(self, tag: str) -> Iterator[None]:
        """Keep other threads from making the same base for the duration of the `with` block."""
        with self._lock:
            lock, wanted = self._making.get(tag, (threading.Lock(), 0))
            self._making[tag] = (lock, wanted + 1)
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, wanted = self._making.pop(tag)
                if wanted > 1:
                    self._making[tag] = (lock, wanted - 1)

    def _make(self, image: Mapping[str, Any], tag: str) -> None:
        volumes = _volumes(image)
        if len(volumes) > MAX_VOLUMES:
            raise ImageError(f"image {image['Id']} declares {len(volumes)} volumes; at most {MAX_VOLUMES} are possible")
        settings = {key: value for key, value in (image.get("Config") or {}).items() if key != "Volumes"}
        with Scratch(self._engine, self._owner()) as made:
            bare = None
            if len(_layers(image)) < self._max_layers:  # there may be one more
                bare = self._loaded(image, _layers(image), {"Labels": made.labels}, made.tag)
            bare = bare or self.merged(made.container(image["Id"])["Id"], made)
            helper = made.container(bare["Id"])
            files = DockerFiles(self._engine, helper)
            added = _directories(files, volumes)
            if self._loaded(image, _layers(bare), settings, tag, added) is None:
                if added:
                    files.put("/", [added])
                # The engine adds the helper's labels, except those that the settings have.
                labels = {**dict.fromkeys(made.labels, ""), **(settings.get("Labels") or {})}
                self._copies.commit(helper["Id"], tag, {**settings, "Labels": labels}, "an image cannot be made over")

    def _loaded(
        self, image: Mapping[str, Any], layers: list[str], settings: object, tag: str, added: bytes = b""
    ) -> dict[str, Any] | None:
        """Load an image of layers that the engine holds, and of another one in the tar archive `added`, if that is
        not empty. Returns the engine's description of it; None if the engine loads no image without its layers.

        `image`: the engine's description of the image whose platform it has. `settings`: its `Config`.
        """
        diffs = [*layers, *([f"sha256:{hashlib.sha256(added).hexdigest()}"] if added else [])]
        names = [f"{number}.tar" for number in range(len(diffs))]
        config = {**_platform(image), "config": settings, "rootfs": {"type": "layers", "diff_ids": diffs}}
        files = {
            "config.json": json.dumps(config).encode(),
            "manifest.json": json.dumps([{"Config": "config.json", "RepoTags": [tag], "Layers": names}]).encode(),
            **({names[-1]: added} if added else {}),
        }
        with self._copies.making(), engine_errors("an image cannot be loaded"):
            body = [_archive(files)]
            answer = self._engine.send("POST", "/images/load", {"quiet": "1"}, body, timeout=COPY_TIMEOUT)
        if refusal := answer.refusal():
            if is_full(refusal):
                raise disk_is_full(f"an image cannot be loaded: {refusal}")
            log.debug("the engine loads no image without its layers: %s", refusal)
            return None
        found = self._inspect(tag)
        return found if found and _layers(found) == diffs else None

    def merged(self, container_id: str, made: Scratch) -> dict[str, Any]:
        """An image of one layer with all files of a container, and without settings."""
        what = "the layers of an image cannot be merged"
        with engine_errors(what):
            answer = self._engine.call("GET", f"/containers/{container_id}/export", stream=True).check()
        with closing(DockerArchive(answer)) as disk:
            if refusal := self._copies.import_disk(disk, made.tag, made.labels, what):
                text = f"{what}: {refusal}"
                raise disk_is_full(text) if is_full(refusal) else EngineError(text)
        merged = self._inspect(made.tag)
        if merged is None:
            raise EngineError(f"{what}: the new image is not there")
        return merged

    # ---- finding and removing ----

    def made_of(self, image_id: str) -> list[str]:
        """The ids of the images that boxes of an image are made of: its own, and that of its base."""
        base = self._inspect(_tag(image_id))
        return [image_id, base["Id"]] if base else [image_id]

    def sweep(self) -> None:
        """Remove the bases of images that are gone, unless a box is made of them."""
        with engine_errors("cannot list the bases"):
            found = self._engine.api.images(name=BASE_REPOSITORY)
        for tag in [tag for image in found for tag in image["RepoTags"] or () if is_base(tag)]:
            if self._inspect(f"sha256:{tag.rpartition(':')[2]}") is None:
                with suppress(NotFoundError, InvalidStateError), engine_errors(f"cannot remove {tag}"):
                    self._engine.api.remove_image(tag)

    def _inspect(self, reference: str) -> dict[str, Any] | None:
        with suppress(NotFoundError), engine_errors(f"image {reference}"):
            return dict(self._engine.api.inspect_image(reference))
        return None


# ---- images ----


def _tag(image_id: str) -> str:
    return f"{BASE_REPOSITORY}:{image_id.rpartition(':')[2]}"


def _layers(image: Mapping[str, Any]) -> list[str]:
    return (image.get("RootFS") or {}).get("Layers") or []


def _volumes(image: Mapping[str, Any]) -> list[str]:
    """The paths of the volumes that an image declares, clean and absolute."""
    declared = (image.get("Config") or {}).get("Volumes") or {}
    return sorted({posixpath.normpath(f"/{path.lstrip('/')}") for path in declared})


def _platform(image: Mapping[str, Any]) -> dict[str, str]:
    """What an image's configuration says besides settings and layers."""
    names = {"architecture": "Architecture", "variant": "Variant", "os": "Os", "os.version": "OsVersion"}
    names |= {"author": "Author", "created": "Created"}
    return {key: image[name] for key, name in names.items() if image.get(name)}


def _absent(files: DockerFiles, path: str) -> list[str]:
    """The directories, outermost first, that are missing on the way to a path and at its end."""
    parts = path.strip("/").split("/")
    for count in range(1, len(parts) + 1):
        head = "/" + "/".join(parts[:count])
        state = files.stat(head)
        if state is None:
            return ["/" + "/".join(parts[:end]) for end in range(count, len(parts) + 1)]
        if state.kind is FileKind.LINK:
            # The target has no links in it, so this ends.
            return _absent(files, posixpath.join(state.target, *parts[count:]))
        if state.kind is not FileKind.DIRECTORY:
            return []
    return []


def _directories(files: DockerFiles, paths: Iterable[str]) -> bytes:
    """A tar archive of the directories that are missing at and above paths, as the engine makes them for volumes;
    empty if there are none. The directories that they are in come along, or a layer would change these."""
    absent = {directory for path in paths for directory in _absent(files, path)}
    if not absent:
        return b""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for directory in sorted(absent.union(*map(_above, absent))):
            entry = _directory(directory) if directory in absent else _entry(files, directory)
            entry.name = directory.lstrip("/")
            tar.addfile(entry)
    return archive.getvalue()


def _directory(path: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(path)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    return entry


def _entry(files: DockerFiles, path: str) -> tarfile.TarInfo:
    """The entry of an existing directory in a tar archive."""
    head = b""
    with closing(files.get(path)) as content:
        for piece in content:
            head += piece
            if len(head) >= _HEAD_BYTES:
                break
    with tarfile.open(fileobj=io.BytesIO(head), mode="r:") as tar:
        entry = tar.next()
    if entry is None or not entry.isdir():
        raise EngineError(f"the engine's archive of {path!r} does not begin with that directory")
    return entry


def _above(path: str) -> list[str]:
    """The directories that a path is in, without the root."""
    return [path[:end] for end in range(1, len(path)) if path[end] == "/"]


def _archive(files: Mapping[str, bytes]) -> bytes:
    """A tar archive of files."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return archive.getvalue()
