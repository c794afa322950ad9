"""The metrics of this process: those that are counted on the way, and how a scrape gets them all as text.

A metric with labels has a child for each combination of their values. Children are made once and found in a
dictionary: to count costs about a microsecond. Labels have values that this program names: operations, methods, states,
reasons. Nothing that a client, a box or a worker has named becomes a label, so that nobody can make a scrape long.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from .. import __version__

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

# Upper bounds in seconds: of what takes milliseconds, and of what may take minutes.
SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
LONG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)

disable_created_metrics()  # type: ignore[no-untyped-call]  # the time at which each child was made would be half of a scrape
_registry = CollectorRegistry()
ProcessCollector(registry=_registry)

M = TypeVar("M", bound=MetricWrapperBase)


class Labelled(dict[Hashable, M], Generic[M]):
    """The children of a metric, by the value of its label, or by a tuple of the values of its labels."""

    def __init__(self, metric: M, known: Iterable[Hashable] = ()) -> None:
        super().__init__()
        self._metric = metric
        for values in known:
            self[values]

    def __missing__(self, values: Hashable) -> M:
        of_all = values if isinstance(values, tuple) else (values,)
        child = self[values] = self._metric.labels(*of_all)
        return child


def counter(name: str, documentation: str) -> Counter:
    return Counter(name, documentation, registry=_registry)


def counters(name: str, documentation: str, *labels: str, known: Iterable[Hashable] = ()) -> Labelled[Counter]:
    """A counter with labels. `known`: values of the labels that a scrape shows from the start, as 0."""
    return Labelled(Counter(name, documentation, labels, registry=_registry), known)


def histogram(name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
    return Histogram(name, documentation, buckets=buckets, registry=_registry)


def histograms(
    name: str, documentation: str, *labels: str, buckets: tuple[float, ...], known: Iterable[Hashable] = ()
) -> Labelled[Histogram]:
    """A histogram with labels; see `counters`."""
    return Labelled(Histogram(name, documentation, labels, buckets=buckets, registry=_registry), known)


def gauge_of(name: str, documentation: str, value: float) -> Metric:
    """A gauge that a scrape has read."""
    return GaugeMetricFamily(name, documentation, value=value)


def gauges_of(name: str, documentation: str, label: str, values: Mapping[Any, float]) -> Metric:
    """The same, with a label."""
    return _labelled(GaugeMetricFamily(name, documentation, labels=[label]), values)


def counter_of(name: str, documentation: str, value: float) -> Metric:
    """A counter that something else counts, as a scrape has read it."""
    return CounterMetricFamily(name, documentation, value=value)


def counters_of(name: str, documentation: str, label: str, values: Mapping[Any, float]) -> Metric:
    """The same, with a label."""
    return _labelled(CounterMetricFamily(name, documentation, labels=[label]), values)


def _labelled(family: Any, values: Mapping[Any, float]) -> Metric:
    for value, number in values.items():
        family.add_metric([str(value)], number)
    metric: Metric = family
    return metric


class _Scrape(Collector):
    """What one scrape shows."""

    def __init__(self, read: Iterable[Metric]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        yield gauges_of("boxlite_build_info", "The version of this program.", "version", {__version__: 1})
        yield from _registry.collect()
        yield from self._read


def text(read: Iterable[Metric]) -> bytes:
    """All metrics of this process in the text format of Prometheus; `read`: those that this scrape has read."""
    return generate_latest(_Scrape(read))
