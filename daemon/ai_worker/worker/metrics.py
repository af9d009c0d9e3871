"""What one worker tells Prometheus of itself, on a port of its own and in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ai_worker.counts import Counts, Metric, Source
from ai_worker.errors import ConfigurationError
from ai_worker.log import Event, Log

if TYPE_CHECKING:
    from ai_worker.exposition import Gauge, Sample


@contextmanager
def serving(
    port: int | None,
    host: str,
    counts: Counts,
    name: Callable[[int], str],
    gauges: Callable[[], dict[Metric, float]],
    in_flight: Callable[[int], int],
    log: Log,
) -> Iterator[None]:
    """Answers at `http://host:port/metrics` for the length of the block, and logs where; nothing where the port is None.

    Parameters
    ----------
    port: 0 takes any free one.
    name: the name of a model.
    gauges: the worker's own numbers, without labels.
    in_flight: how many of a model's items are under way.

    Raises ConfigurationError where `prometheus_client` is not installed, or the port cannot be had. The functions are called from
    the endpoint's threads.
    """
    if port is None:
        yield
        return
    try:
        from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, start_http_server

        from ai_worker import exposition
    except ImportError as error:
        raise ConfigurationError(
            f"a worker's own metrics need a package that is not installed ({error.name}): pip install 'ai-worker[metrics]', "
            "or leave AI_WORKER_METRICS_PORT unset"
        ) from None

    def read() -> tuple[list[Sample], list[Gauge]]:
        reading = counts.read()
        samples = [
            exposition.Sample(key, name(key.id_ai_model) if key.id_ai_model else "", n) for key, n in reading.values.items()
        ]
        own = [exposition.Gauge(metric, (), value) for metric, value in gauges().items()]
        models = [exposition.Gauge(Metric.IN_FLIGHT, (name(each),), in_flight(each)) for each in reading.work]
        return samples, [*own, *models]

    registry = CollectorRegistry(auto_describe=False)
    registry.register(exposition.Exposition(Source.PROCESS, read))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise ConfigurationError(
            f"the worker's metrics cannot be served at {host} port {port}: {error.strerror or error}; set AI_WORKER_METRICS_PORT "
            "to a free port, another one for each worker on a host, or to 0 for any"
        ) from None
    try:
        log(Event.METRICS, address=f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/metrics")
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
