"""The metrics in the form that Prometheus reads: the only module that needs `prometheus_client` to be imported."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import (
    Metric as Family,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from ai_worker import __version__
from ai_worker.counts import PREFIX, SUM, Key, Kind, Metric, Source, bounds_of, labels_of

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


class Sample(NamedTuple):
    """A counter's value, or that of a part of a histogram; `model` is the name of the key's model."""

    key: Key
    model: str
    value: float


class Gauge(NamedTuple):
    """A value that goes up and down, with the values of its metric's labels."""

    metric: Metric
    labels: tuple[str, ...]
    value: float


class Exposition(Collector):
    """What one source gives: all of its metrics, each time as `read` finds them.

    Parameters
    ----------
    read: the counters and the gauges there are now. Called anew for each answer, in whichever thread wants it.
    """

    def __init__(self, source: Source, read: Callable[[], tuple[Iterable[Sample], Iterable[Gauge]]]) -> None:
        self._source = source
        self._read = read

    def collect(self) -> Iterable[Family]:
        samples, gauges = self._read()
        by_name: defaultdict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            by_name[sample.key.name].append(sample)
        by_metric: defaultdict[Metric, dict[tuple[str, ...], float]] = defaultdict(dict)
        by_metric[Metric.BUILD_INFO][__version__,] = 1.0
        for gauge in gauges:
            by_metric[gauge.metric][gauge.labels] = gauge.value
        for metric in Metric:
            if metric.is_of(self._source):
                yield _family(metric, by_name[metric.key], by_metric[metric])


def text(collector: Collector) -> bytes:
    """All metrics of one look, in the text format."""
    registry = CollectorRegistry(auto_describe=False)  # or it would look once more, only to know the names
    registry.register(collector)
    return generate_latest(registry)


def _family(metric: Metric, samples: Sequence[Sample], gauges: Mapping[tuple[str, ...], float]) -> Family:
    name, labels = PREFIX + metric.key, metric.labels
    if metric.kind is Kind.GAUGE:
        family = GaugeMetricFamily(name, metric.help, labels=labels)
        for values, value in sorted(gauges.items()):
            family.add_metric(values, value)
        return family
    if metric.kind is Kind.HISTOGRAM:
        return _histogram(metric, samples)
    sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
    if not labels:
        sums[()] = 0.0  # one that has not happened is told of too: a rate begins at the first time, not at the second
    for sample in samples:
        sums[labels_of(metric, sample.key, sample.model)] += sample.value
    counter = CounterMetricFamily(name, metric.help, labels=labels)
    for values, value in sorted(sums.items()):
        counter.add_metric(values, value)
    return counter


def _histogram(metric: Metric, samples: Sequence[Sample]) -> Family:
    bounds = bounds_of(metric)
    found: defaultdict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    if not metric.labels:
        found[()] = {}
    for sample in samples:
        of_one = found[labels_of(metric, sample.key, sample.model)]
        of_one[sample.key.label] = of_one.get(sample.key.label, 0.0) + sample.value
    family = HistogramMetricFamily(PREFIX + metric.key, metric.help, labels=metric.labels)
    for values, parts in sorted(found.items()):
        count, buckets = 0.0, []
        for bound in bounds:
            count += parts.get(bound, 0.0)
            buckets.append((bound, count))
        family.add_metric(values, buckets=buckets, sum_value=parts.get(SUM, 0.0))
    return family
