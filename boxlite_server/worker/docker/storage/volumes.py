"""Volumes of Docker Engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from ....errors import InvalidStateError, NotFoundError
from ...runtime import Owner, Volume
from ..engine import Engine, engine_errors
from ..labels import VOLUME_LABEL, owned_by, owner_labels, volume_name


class DockerVolumes:
    """The `Volumes` of Docker Engine: named volumes that carry the owner's labels."""

    def __init__(self, engine: Engine, owner: Callable[[], Owner]) -> None:
        self._engine = engine
        self._owner = owner

    def create(self, volume_id: str) -> Volume:
        labels = {**owner_labels(self._owner()), VOLUME_LABEL: volume_id}
        with engine_errors(f"volume {volume_id} cannot be created"):
            # If the volume exists, the engine returns it with the labels that it was made with.
            made = self._engine.api.create_volume(volume_name(volume_id), labels=labels)
        if not self._is_own(made):
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
        """Raise `InvalidStateError` if a volume is missing.

        The engine would make a missing volume, and the box would find it empty in place of its data.
        """
        for volume_id in volume_ids:
            try:
                self._find(volume_id)
            except NotFoundError as exc:
                raise InvalidStateError(exc.message) from exc

    def _find(self, volume_id: str) -> dict[str, Any]:
        """The engine's description of the volume. Raises `NotFoundError` when the owner has no such volume."""
        with engine_errors(f"volume {volume_id}"):
            found = dict(self._engine.api.inspect_volume(volume_name(volume_id)))
        if not self._is_own(found):
            raise NotFoundError(f"volume {volume_id} is not on this worker")
        return found

    def _is_own(self, volume: dict[str, Any]) -> bool:
        return (volume["Labels"] or {}).items() >= owner_labels(self._owner()).items()


def _volume(found: dict[str, Any]) -> Volume:
    created = datetime.fromisoformat(found["CreatedAt"])
    return Volume(found["Labels"][VOLUME_LABEL], int(created.timestamp() * 1000))
