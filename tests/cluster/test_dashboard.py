"""The dashboard, the alert rules and the tables of metrics in docs/: all that they name is in a scrape, and Prometheus
takes it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from support import prometheus, scrape
from support.boxes import create, start
from support.cluster import Cluster, wait_until
from support.prometheus import Prometheus
from support.scrape import Scrape

from boxlite_server import ids
from boxlite_server.local import dockerd

ROOT = Path(__file__).parents[2]
CONFIG, RULES = ROOT / "deploy/prometheus/prometheus.yml", ROOT / "deploy/prometheus/rules.yml"
DASHBOARD = ROOT / "deploy/grafana/boxlite.json"
PAGE = ROOT / "docs/operations.md"


class Query(NamedTuple):
    place: str
    expression: str
    labels: frozenset[str]  # that its result has to have


def _queries() -> Iterator[Query]:
    """Those of the dashboard. The legend names the labels of the result."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            labels = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
            yield Query(panel["title"], target["expr"].replace("$__rate_interval", "1m"), frozenset(labels))


def _alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


QUERIES = list(_queries())
ALERTS = _alerts()
EXPRESSIONS = [*(query.expression for query in QUERIES), *(alert["expr"] for alert in ALERTS)]


class Site(NamedTuple):
    """A cluster whose coordinator and worker show their metrics to the holder of `token`."""

    cluster: Cluster
    token: Path

    def scrapes(self) -> tuple[Scrape, Scrape]:
        headers = {"Authorization": f"Bearer {self.token.read_text()}"}
        return scrape.of_coordinator(self.cluster, headers), scrape.of_worker(self.cluster.workers[0], headers)


@pytest.fixture(scope="module")
def site(new_shared_cluster: Callable[..., Cluster], test_image: str, tmp_path_factory: Any) -> Site:
    """A cluster that did what its metrics count, so that all are there."""
    cluster = new_shared_cluster()
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(ids.secret())
    cluster.secrets.add(token.read_text())
    key = cluster.new_key("--worker")
    cluster.start_coordinator("--metrics-token-file", str(token))
    cluster.start_worker("--metrics-token-file", str(token), "--api-key", key)
    cluster.api_key = cluster.new_key("--prefix", "acme")
    site = Site(cluster, token)
    box = create(cluster)
    start(cluster, box)
    assert cluster.http("POST", f"/v1/boxes/{box}/run", {"command": "true"})[0] == 200
    assert cluster.http("POST", f"/v1/boxes/{box}/run", {"command": "/no/such"})[0] == 422
    [container] = dockerd.containers(cluster.docker_host, f"boxlite.box={box}")
    dockerd.request(cluster.docker_host, "POST", f"/containers/{container}/kill")
    wait_until(lambda: bool(site.scrapes()[0].values("boxlite_reconcile_actions_total")), "the row was brought in line")
    return site


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = prometheus.programs(tmp_path_factory.mktemp("programs"))
    if found is None:
        pytest.skip("promtool and prometheus are missing (Debian, Ubuntu: apt-get install prometheus)")
    return found


@pytest.fixture(scope="module")
def server(site: Site, programs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with the configuration of deploy/, which has scraped the cluster some times. Only addresses, files
    and the interval are put in for those that a reader has."""
    directory, worker = tmp_path_factory.mktemp("prometheus"), site.cluster.workers[0]
    text = CONFIG.read_text().replace("/etc/prometheus/boxlite-token", str(site.token)).replace("15s", "1s")
    text = text.replace("coordinator:8200", f"127.0.0.1:{site.cluster.port}")
    text = text.replace('"worker-1:9101", "worker-2:9101"', f'"127.0.0.1:{worker.health_port}"')
    (directory / "prometheus.yml").write_text(text)
    (directory / "rules.yml").write_text(RULES.read_text())
    with prometheus.server(programs["prometheus"], directory / "prometheus.yml", directory) as running:
        wait_until(lambda: len(running.query("count_over_time(up[5m]) > 3 and up == 1")) == 2, "both were scraped")
        yield running


# ---- queries --------------------------------------------------------------------------------------------


def test_dashboard_and_rules_name_metrics_and_values_that_are_there(site: Site) -> None:
    shown = site.scrapes()
    names = {"up", *(name for each in shown for name in each.names)}
    values = {value for each in shown for value in each.label_values()}
    for expression in EXPRESSIONS:
        named = re.findall(r"\b(boxlite_\w+|process_\w+|up)\b", expression)
        assert named, expression
        for name in named:
            assert name in names or re.sub("_(bucket|count|sum)$", "", name) in names, expression
        for value in re.findall(r'\w+="(\w+)"', expression):
            assert value in values or value in SELDOM, expression


SELDOM = frozenset({"failed", "createBox"})  # values that come with what they count


def test_queries_of_the_dashboard_find_something(server: Prometheus) -> None:
    for query in QUERIES:
        series = server.query(query.expression)
        assert series, (query.place, query.expression)
        for each in series:
            assert query.labels <= each["metric"].keys(), (query.place, query.expression, each["metric"])


def test_no_alert_of_a_healthy_cluster_is_due(server: Prometheus) -> None:
    """Prometheus has evaluated each of them."""
    assert not [alert["alert"] for alert in ALERTS if server.query(alert["expr"])]


def test_panels_do_not_lie_over_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


# ---- alerts ---------------------------------------------------------------------------------------------


def test_promtool_accepts_rules_and_configuration(site: Site, programs: dict[str, str], tmp_path: Path) -> None:
    prometheus.run(programs["promtool"], "check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    config = tmp_path / "prometheus.yml"
    config.write_text(CONFIG.read_text().replace("/etc/prometheus/boxlite-token", str(site.token)))
    (tmp_path / "rules.yml").write_text(RULES.read_text())
    prometheus.run(programs["promtool"], "check", "config", "--lint=all", "--lint-fatal", str(config))


# What makes each alert fire: series with their values, one each minute for an hour, and the labels that it then has.
COORDINATOR, WORKER = 'job="boxlite-coordinator",instance="c"', 'job="boxlite-worker",instance="w"'
FIRING: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "BoxliteDown": ({f"up{{{WORKER}}}": "0x60"}, {"job": "boxlite-worker", "instance": "w"}),
    "BoxliteDatabaseDown": (
        {f"boxlite_database_up{{{COORDINATOR}}}": "0x60"},
        {"job": "boxlite-coordinator", "instance": "c"},
    ),
    "BoxliteWorkerUnreachable": ({f'boxlite_workers{{{COORDINATOR},state="unreachable"}}': "1x60"}, {}),
    "BoxliteEngineDown": ({f"boxlite_workers_without_engine{{{COORDINATOR}}}": "1x60"}, {}),
    "BoxliteWorkerNotRegistered": (
        {f"boxlite_worker_registered{{{WORKER}}}": "0x60"},
        {"job": "boxlite-worker", "instance": "w"},
    ),
    "BoxliteRequestsFail": (
        {
            f'boxlite_requests_total{{{COORDINATOR},operation="getBox",status="200"}}': "0+9x60",
            f'boxlite_requests_total{{{COORDINATOR},operation="getBox",status="503"}}': "0+1x60",
        },
        {},
    ),
    "BoxliteNoRoom": (
        {f'boxlite_placement_refusals_total{{{COORDINATOR},reason="memory"}}': "0+1x60"},
        {"reason": "memory"},
    ),
    "BoxliteMemoryReserved": (
        {
            f"boxlite_memory_reserved_bytes{{{COORDINATOR}}}": "95x60",
            f"boxlite_memory_offered_bytes{{{COORDINATOR}}}": "100x60",
        },
        {},
    ),
    "BoxliteCreatesSlow": (
        {
            f'boxlite_request_duration_seconds_bucket{{{COORDINATOR},operation="createBox",le="10"}}': "0x60",
            f'boxlite_request_duration_seconds_bucket{{{COORDINATOR},operation="createBox",le="60"}}': "0+1x60",
            f'boxlite_request_duration_seconds_bucket{{{COORDINATOR},operation="createBox",le="+Inf"}}': "0+1x60",
        },
        {},
    ),
    "BoxliteSlotsUsed": (
        {
            f'boxlite_worker_slots_used{{{WORKER},kind="runs"}}': "250x60",
            f'boxlite_worker_slots{{{WORKER},kind="runs"}}': "256x60",
        },
        {"job": "boxlite-worker", "instance": "w", "kind": "runs"},
    ),
    "BoxliteStartsWait": (
        {f'boxlite_worker_starts{{{WORKER},state="waiting"}}': "3x60"},
        {"job": "boxlite-worker", "instance": "w", "state": "waiting"},
    ),
    "BoxliteSpoolFull": (
        {
            f'boxlite_worker_spool_bytes{{{WORKER},content="output"}}': "95x60",
            f'boxlite_worker_spool_limit_bytes{{{WORKER},content="output"}}': "100x60",
        },
        {"job": "boxlite-worker", "instance": "w", "content": "output"},
    ),
    "BoxliteEngineFails": (
        {f'boxlite_worker_engine_errors_total{{{WORKER},kind="unreachable"}}': "0+3x60"},
        {"job": "boxlite-worker", "instance": "w", "kind": "unreachable"},
    ),
    "BoxliteCommandsSlow": (
        {f'boxlite_worker_commands_by_engine_total{{{WORKER},reason="not_connected"}}': "0+3x60"},
        {"instance": "w", "reason": "not_connected"},
    ),
    "BoxliteRepairsFail": (
        {f'boxlite_reconcile_actions_total{{{COORDINATOR},kind="adopt",result="failed"}}': "0+1x60"},
        {"kind": "adopt"},
    ),
    "BoxliteOrphansRefused": ({f"boxlite_orphans_refused{{{COORDINATOR}}}": "2x60"}, {}),
    "BoxliteWrongKeys": ({f'boxlite_refused_requests_total{{{COORDINATOR},reason="wrong"}}': "0+20x60"}, {}),
    "BoxliteAuditIncomplete": ({f"boxlite_audit_lines_missing_total{{{COORDINATOR}}}": "0+1x60"}, {}),
    "BoxliteLeasesLost": ({f"boxlite_leases_lost_total{{{COORDINATOR}}}": "0+1x60"}, {}),
}


def test_every_alert_fires_when_it_should(programs: dict[str, str], tmp_path: Path) -> None:
    assert FIRING.keys() == {alert["alert"] for alert in ALERTS}
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": f"count(ALERTS{{{_matchers(alert, labels)}}})",
                    "eval_time": "50m",
                    "exp_samples": [{"labels": "{}", "value": 1}],
                }
            ],
        }
        for alert, (series, labels) in FIRING.items()
    ]
    file = tmp_path / "tests.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    prometheus.run(programs["promtool"], "test", "rules", str(file))


def _matchers(alert: str, labels: dict[str, str]) -> str:
    return ",".join(
        f'{name}="{value}"' for name, value in {"alertname": alert, "alertstate": "firing", **labels}.items()
    )


# ---- docs -----------------------------------------------------------------------------------------------


def test_the_page_names_every_metric_and_alert_that_there_is(site: Site) -> None:
    section = re.search(r"\n## Metrics\n(.*?)\n## ", PAGE.read_text(), re.DOTALL)
    assert section
    named = set(re.findall(r"^\| `(boxlite_\w+)`", section[1], re.MULTILINE))
    shown = {name for each in site.scrapes() for name in each.names if name.startswith("boxlite_")}
    assert named == shown
    assert set(re.findall(r"^\| `(Boxlite\w+)`", section[1], re.MULTILINE)) == {alert["alert"] for alert in ALERTS}


def test_the_page_names_every_label_of_a_metric(site: Site) -> None:
    rows = dict(re.findall(r"^\| `(boxlite_\w+)` \| ([^|]*) \|", PAGE.read_text(), re.MULTILINE))
    for each in site.scrapes():
        for family in each.families:
            labels = {label for sample in family.samples for label in sample.labels if label != "le"}
            name = family.name + "_total" * (family.type == "counter")
            if name in rows:
                assert set(re.findall(r"`(\w+)`", rows[name])) == labels, name
