"""What a scrape of a coordinator or a worker shows."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from support.cluster import Cluster, Worker, call


class Scrape:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = list(text_string_to_metric_families(text))
        self._samples = [sample for family in self.families for sample in family.samples]

    @property
    def names(self) -> set[str]:
        """The names of metrics as queries write them, those of histograms without their endings."""
        return {family.name + "_total" * (family.type == "counter") for family in self.families}

    def value(self, name: str, **labels: str) -> float:
        """The value of one sample; 0 where there is none yet, as in Prometheus' own sums."""
        found = [sample.value for sample in self._samples if sample.name == name and sample.labels == labels]
        assert len(found) <= 1
        return found[0] if found else 0.0

    def values(self, name: str) -> dict[tuple[str, ...], float]:
        """All samples of a name, by the values of their labels in the order of the labels' names."""
        return {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for sample in self._samples
            if sample.name == name
        }

    def label_values(self) -> set[str]:
        return {value for sample in self._samples for value in sample.labels.values()}


def of_coordinator(cluster: Cluster, headers: Mapping[str, str] | None = None) -> Scrape:
    status, _, body = cluster.http("GET", "/metrics", headers=headers)
    assert status == 200, body
    return Scrape(body.decode())


def of_worker(worker: Worker, headers: Mapping[str, str] | None = None) -> Scrape:
    status, _, body = call(worker.health_port, "GET", "/metrics", headers=headers)
    assert status == 200, body
    return Scrape(body.decode())
