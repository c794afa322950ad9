"""What an engine holds, without what other clusters have there: clusters of other tests may share the engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import docker

from boxlite_server.worker.docker.labels import CLUSTER_LABEL, owned_by
from boxlite_server.worker.runtime import Owner


def image_ids(api: docker.APIClient, owner: Owner) -> list[str]:
    """The ids of all images that are the owner's or nobody's, tagged or not."""
    return sorted(image["Id"] for image in _without_others(api.images(all=True), owner))


def volume_names(api: docker.APIClient, owner: Owner) -> list[str]:
    """The names of all volumes that are the owner's or nobody's."""
    return sorted(volume["Name"] for volume in _without_others(api.volumes()["Volumes"] or [], owner))


def container_names(api: docker.APIClient, owner: Owner) -> list[str]:
    """The names of all containers that are the owner's or nobody's, running or not."""
    return sorted(name for found in _without_others(api.containers(all=True), owner) for name in found["Names"])


def tags(api: docker.APIClient, owner: Owner, repository: str) -> set[str]:
    """The tags in a repository of the owner's images."""
    images = api.images(repository, filters={"label": owned_by(owner)})
    names = [name.rpartition(":") for image in images for name in image["RepoTags"] or ()]
    return {tag for found, _, tag in names if found == repository}


def _without_others(things: Iterable[Mapping[str, Any]], owner: Owner) -> Iterator[Mapping[str, Any]]:
    for thing in things:
        if (thing["Labels"] or {}).get(CLUSTER_LABEL, owner.cluster_id) == owner.cluster_id:
            yield thing
