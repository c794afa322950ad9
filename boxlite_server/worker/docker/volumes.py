"""Volumes and mounts on Docker Engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from ...errors import InvalidStateError, NotFoundError
from ..runtime import Owner, Volume
from .engine import Engine, engine_errors
from .labels import CLUSTER_LABEL, VOLUME_LABEL, WORKER_LABEL, owned_by, volume_name


class DockerVolumes:
    """The `Volumes` of Docker Engine: its named volumes that carry the owner's labels."""

    def __init__(self, engine: Engine, owner: Callable[[], Owner]) -> None:
        self._engine = engine
        self._owner = owner

    def create(self, volume_id: str) -> Volume:
        labels = {**self._labels(), VOLUME_LABEL: volume_id}
        with engine_errors(f"volume {volume_id} cannot be created"):
            # Of one that exists the engine answers what it is, with the labels it was made with.
            made = self._engine.api.create_volume(volume_name(volume_id), labels=labels)
        if not self._is_ours(made):
            raise InvalidStateError(f"volume {volume_id} belongs to another worker")
        return _volume(made)

    def remove(self, volume_id: str) -> None:
        try:
            self._find(volume_id)
            with engine_errors(f"volume {volume_id} cannot be removed"):
                self._engine.api.remove_volume(volume_name(volume_id))
        except NotFoundError:
            pass

    def list(self) -> list[Volume]:
        mine = owned_by(self._owner())
        with engine_errors("cannot list the volumes"):
            found = self._engine.api.volumes(filters={"label": [*mine, VOLUME_LABEL]})["Volumes"] or []
        return [_volume(entry) for entry in found]

    def check(self, volume_ids: Iterable[str]) -> None:
        """Raises `InvalidStateError` unless all are there.

        The engine would make what is missing, and a box would find its data replaced by nothing.
        """
        for volume_id in volume_ids:
            try:
                self._find(volume_id)
            except NotFoundError as exc:
                raise InvalidStateError(exc.message) from exc

    def _find(self, volume_id: str) -> dict[str, Any]:
        with engine_errors(f"volume {volume_id}"):
            found = dict(self._engine.api.inspect_volume(volume_name(volume_id)))
        if not self._is_ours(found):
            raise NotFoundError(f"volume {volume_id} is not on this worker")
        return found

    def _is_ours(self, volume: dict[str, Any]) -> bool:
        return (volume["Labels"] or {}).items() >= self._labels().items()

    def _labels(self) -> dict[str, str]:
        owner = self._owner()
        return {CLUSTER_LABEL: owner.cluster_id, WORKER_LABEL: owner.worker_id}


def _volume(found: dict[str, Any]) -> Volume:
    created = datetime.fromisoformat(found["CreatedAt"])
    return Volume(found["Labels"][VOLUME_LABEL], int(created.timestamp() * 1000))
