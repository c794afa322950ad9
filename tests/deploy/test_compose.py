"""deploy/compose.yaml, the Dockerfile and the Caddyfile: tools read them, and what they start works as it stands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.cluster import wait_until
from support.reader import Reader

from boxlite_server.cli import main
from boxlite_server.errors import EngineError
from boxlite_server.local import busybox, machine

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
OURS = ("coordinator", "worker-1", "worker-2")
IMAGE = "boxlite-server"
BASE = os.environ.get("BOXLITE_TEST_BASE")  # a tar archive of a Debian with Python, to build the image on


def having(command: str, package: str) -> str:
    """The path of a program, which comes by apt where it is missing. Skips the test where that cannot be."""
    if machine.which(command) is None:
        try:
            machine.apt_install(package)
        except EngineError as exc:
            pytest.skip(exc.message)
    found = machine.which(command)
    assert found
    return found


# ---- what tools say -------------------------------------------------------------------------------------


def test_compose_reads_the_file(tmp_path: Path) -> None:
    known = {key: value for key, value in COMPOSE.items() if key != "name"}  # these two are newer than Debian's compose
    known["services"] = {
        name: {key: value for key, value in service.items() if key != "cgroup"}
        for name, service in COMPOSE["services"].items()
    }
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(known))
    command = [having("docker-compose", "docker-compose"), "--file", tmp_path / "compose.yaml", "config"]
    env = {**os.environ, "POSTGRES_PASSWORD": "for the test"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(yaml.safe_load(done.stdout)["services"]) == {*OURS, "postgresql", "prometheus", "caddy"}
    del env["POSTGRES_PASSWORD"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "docs/deploy.md says how it is made" in done.stderr


@pytest.mark.parametrize("service", OURS)
def test_our_services_have_commands_with_flags_that_exist(service: str) -> None:
    arguments = [
        argument.replace("${BOXLITE_SUBNET:-", "").rstrip("}") for argument in COMPOSE["services"][service]["command"]
    ]
    main._parser().parse_args(arguments)


def test_no_secret_stands_in_the_file_and_nothing_but_the_proxy_is_open_to_others() -> None:
    for name, service in COMPOSE["services"].items():
        for port in service.get("ports", ()):
            assert name == "caddy" or port.startswith("127.0.0.1:"), f"{name} publishes {port}"
    assert "password" not in re.sub(r"\$\{\w+[^}]*\}|POSTGRES_PASSWORD|PGPASSWORD", "", json.dumps(COMPOSE)).lower()


def test_files_that_are_mounted_are_there() -> None:
    mounted = [
        volume.split(":")[0] for service in COMPOSE["services"].values() for volume in service.get("volumes", ())
    ]
    files = [DEPLOY / path for path in mounted if path.startswith("./") and not path.startswith("./secrets/")]
    assert len(files) == 3
    assert [str(file) for file in files if not file.exists()] == []


def test_prometheus_asks_services_of_the_file() -> None:
    settings = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    targets = [name for job in settings["scrape_configs"] for each in job["static_configs"] for name in each["targets"]]
    assert {target.split(":")[0] for target in targets} == set(OURS)
    token = {job["authorization"]["credentials_file"] for job in settings["scrape_configs"]}
    mounted = [volume.split(":")[1] for volume in COMPOSE["services"]["prometheus"]["volumes"]]
    assert token <= set(mounted)


def test_the_image_is_made_of_what_is_there_and_runs_as_no_root() -> None:
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for source in (path for paths in copied for path in paths):
        assert (ROOT / source).exists(), f"{source} is not there"
        assert source in allowed, f".dockerignore keeps {source} away"
    assert "USER boxlite" in lines
    assert any(line.startswith("HEALTHCHECK ") for line in lines)


# ---- what it starts -------------------------------------------------------------------------------------


def test_the_image_is_healthy_as_long_as_a_role_answers(reader: Reader) -> None:
    check = f"{sys.executable} {DEPLOY}/healthcheck.py && echo well || echo ill"
    assert reader.type("sh", check) == "ill\n"
    reader.type("sh", "boxlite-server coordinator")
    assert reader.type("sh", check) == "well\n"


def test_caddy_serves_the_api_over_tls_with_output_as_it_comes(reader: Reader) -> None:
    caddy, file = having("caddy", "caddy"), DEPLOY / "caddy/Caddyfile"
    authority = "~/.local/share/caddy/pki/authorities/local/root.crt"
    printed = reader.type(
        "sh",
        f"""
        boxlite-server dev
        {caddy} validate --config {file} 2> caddy.log || {{ cat caddy.log; exit 1; }}
        {caddy} run --config {file} 2> caddy.log & trap "kill $!" EXIT
        for _ in $(seq 300); do
            curl -fs --cacert {authority} https://localhost/v1/health/ready && break || sleep 0.2
        done
        export BOXLITE_CA_CERT={authority} BOXLITE_REST_URL=https://localhost
        boxlite create --name proxied alpine:latest
        mkfifo go
        boxlite exec -i proxied -- sh -c 'echo first; read line; echo "$line"' < go > said & exec 3> go
        until grep first said; do sleep 0.05; done
        echo second >&3
        exec 3>&-
        wait %2
        cat said
        boxlite rm -f proxied
        """,
    )
    assert "first\nsecond\n" in printed


@pytest.fixture
def engine(docker_host: str) -> str:
    """The path of the engine's socket."""
    assert docker_host.startswith("unix://")
    return docker_host.removeprefix("unix://")


@pytest.fixture
def compose(docker_host: str, engine: str) -> Iterator[Callable[..., str]]:
    """Runs docker-compose with our services as they stand in the file, in a project of its own: on SQLite, and with the
    test's engine and directories."""
    if os.geteuid() != 0:
        pytest.skip("workers in containers take root")
    program = having("docker-compose", "docker-compose")
    directory = Path(tempfile.mkdtemp(prefix="boxlite-"))
    (directory / "compose.yaml").write_text(yaml.safe_dump(_services(engine, directory, docker_host)))

    def run(*arguments: str, must: bool = True) -> str:
        command = [
            program,
            "--project-name",
            directory.name.lower().replace("_", ""),
            "--project-directory",
            directory,
            *arguments,
        ]
        env = {**os.environ, "DOCKER_HOST": docker_host}
        done = subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, check=False, timeout=150)
        assert done.returncode == 0 or not must, done.stdout + done.stderr
        return done.stdout

    try:
        yield run
    finally:
        print(run("logs", must=False))
        run("down", "--volumes", "--timeout", "5")
        shutil.rmtree(directory)


def _services(engine: str, directory: Path, docker_host: str) -> dict[str, Any]:
    made = {}
    for name in OURS:
        kept = {key: value for key, value in COMPOSE["services"][name].items() if key not in ("build", "cgroup")}
        text = json.dumps(kept).replace("/var/run/docker.sock:", f"{engine}:")
        made[name] = {**json.loads(text.replace("/var/lib/boxlite-worker", f"{directory}/worker")), "restart": "no"}
    coordinator = made["coordinator"]
    del coordinator["depends_on"], coordinator["environment"]
    coordinator["volumes"] = ["data:/var/lib/boxlite"]
    if not BASE:
        for service in made.values():
            _lend(service, docker_host)
    (directory / "secrets").mkdir()
    for name in COMPOSE["secrets"]:
        (directory / f"secrets/{name}").touch()
    services = {"services": made, "volumes": {"data": {}}}
    return {**services, "networks": COMPOSE["networks"], "secrets": COMPOSE["secrets"]}


def _lend(service: dict[str, Any], docker_host: str) -> None:
    """In place of the image, which takes minutes to build: a small one, to which the tests' machine lends its Python
    and the checkout. The coordinator is root then, without capabilities: nobody else may read those directories."""
    lent = ("/usr", "/lib", "/lib64", sys.base_prefix, sys.prefix, str(ROOT))
    busybox.import_image(docker_host, f"{IMAGE}-lent:latest")
    service["image"] = f"{IMAGE}-lent:latest"
    service["user"] = "0:0"
    service["entrypoint"] = [sys.executable, "-m", "boxlite_server"]
    service["volumes"] = [
        *service["volumes"],
        *(f"{path}:{path}:ro" for path in dict.fromkeys(lent) if Path(path).exists()),
    ]
    service["environment"] = {
        "PYTHONPATH": str(ROOT),
        "BOXLITE_HOME": "/var/lib/boxlite",
        "BOXLITE_COORDINATOR_DB": "/var/lib/boxlite/coordinator.db",
    }
    check = ["CMD", sys.executable, str(DEPLOY / "healthcheck.py")]
    service["healthcheck"] = {"test": check, "interval": "1s", "timeout": "10s", "retries": 60}


@pytest.mark.timeout(900)
def test_the_services_of_the_file_run_boxes(compose: Callable[..., str], docker_host: str) -> None:
    if BASE:
        _build(docker_host, Path(BASE))
    made = {
        "workers": ("--worker",),
        "tenant": ("--prefix", "acme"),
    }
    keys = {
        name: compose("run", "--rm", "-T", "coordinator", "keys", "create", "--name", name, *flags).strip()
        for name, flags in made.items()
    }
    secrets = yaml.safe_load(compose("config"))["secrets"]
    Path(secrets["worker-key"]["file"]).write_text(keys["workers"])
    Path(secrets["prometheus-token"]["file"]).write_text("the-token-of-this-test")
    compose("up", "--detach")
    python = "/opt/boxlite/bin/python" if BASE else sys.executable

    def inside(*arguments: str, must: bool = True, key: str = keys["tenant"]) -> str:
        with_key = ("-e", f"BOXLITE_API_KEY={key}")
        return compose("exec", "-T", *with_key, "coordinator", python, *arguments, must=must)

    def boxlite(*arguments: str, must: bool = True) -> str:
        return inside("-m", "boxlite_server.client", *arguments, must=must)

    def says_hello() -> bool:
        return boxlite("run", "--rm", "alpine:latest", "echo", "hello", must=False) == "hello\n"

    wait_until(says_hello, "a box runs", 90)
    box = boxlite("create", "alpine:latest").strip()
    assert boxlite("exec", box, "--", "echo", "hello") == "hello\n"
    shown = inside("-c", _GET, f"http://127.0.0.1:8200/v1/boxes/{box}")
    assert json.loads(shown)["supervisor"] == "init"
    boxlite("rm", "-f", box)
    for target in ("coordinator:8200", "worker-1:9101", "worker-2:9101"):  # as Prometheus asks
        assert "# TYPE boxlite_" in inside("-c", _GET, f"http://{target}/metrics", key="the-token-of-this-test")
    logs = compose("logs", "worker-1", "worker-2")
    assert logs.count("registered as") == 2
    assert "WARNING" not in logs.replace("not registered yet", "")


_GET = """
import os, sys, urllib.request
headers = {"Authorization": "Bearer " + os.environ["BOXLITE_API_KEY"]}
print(urllib.request.urlopen(urllib.request.Request(sys.argv[1], headers=headers)).read().decode())
"""


def _build(docker_host: str, base: Path) -> None:
    env = {**os.environ, "DOCKER_HOST": docker_host, "DOCKER_BUILDKIT": "0"}
    subprocess.run(["docker", "import", base, f"{IMAGE}-base:latest"], env=env, check=True)
    command = ["docker", "build", "--build-arg", f"PYTHON={IMAGE}-base:latest", "--tag", IMAGE, ROOT]
    subprocess.run(command, env=env, check=True)
