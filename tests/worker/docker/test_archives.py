"""Archives on their way between the worker and its engine."""

from __future__ import annotations

from contextlib import closing

import docker

from boxlite_server.worker.docker.engine import Engine


def test_the_engine_spends_no_time_on_compressing_a_download(
    docker_host: str, api: docker.APIClient, test_image: str
) -> None:
    container = api.create_container(test_image, ["true"])["Id"]
    try:
        path = f"/containers/{container}/archive"
        with closing(Engine(docker_host).call("GET", path, {"path": "/bin"}, stream=True).check()) as answer:
            assert "Content-Encoding" not in answer.headers
    finally:
        api.remove_container(container)
