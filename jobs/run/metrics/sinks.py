"""Where metrics go: a port that Prometheus scrapes, a file for node_exporter's textfile collector, or Ray's own exporter."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from index.errors import ConfigError, RunStopped
from jobs.run.metrics.table import METRICS

if TYPE_CHECKING:
    from pipeline.config import MetricsConfig

WRITE_EVERY = 5.0  # seconds between two versions of the file


class Sink(Protocol):
    """Where the numbers go."""

    def add(self, name: str, value: float = 1.0, **labels: str) -> None:
        """Add to a counter."""

    def put(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""

    def observe(self, name: str, value: float) -> None:
        """Add to a histogram."""

    def flush(self, *, now: bool = False) -> None:
        """Write out what is not fetched; rarely, unless ``now``."""

    def close(self) -> None:
        """The run has ended."""


class Nowhere:
    """A sink that counts nothing."""

    def add(self, name: str, value: float = 1.0, **labels: str) -> None: ...
    def put(self, name: str, value: float, **labels: str) -> None: ...
    def observe(self, name: str, value: float) -> None: ...
    def flush(self, *, now: bool = False) -> None: ...
    def close(self) -> None: ...


_sink: ContextVar[Sink] = ContextVar("metrics", default=Nowhere())  # noqa: B039 (it keeps no state)


@contextlib.contextmanager
def using(sink: Sink) -> Iterator[None]:
    """Count into this sink for the time of the block; then close it."""
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)
        sink.close()


def sink_in_use() -> Sink:
    """That of :func:`using`; in a worker of Ray, Ray's own."""
    sink = _sink.get()
    if isinstance(sink, Nowhere) and in_ray_worker():
        return ray_sink()
    return sink


def in_ray_worker() -> bool:
    """Whether this process is a worker of Ray. Elsewhere Ray is not even imported for the answer."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE


def sink_of(config: MetricsConfig, runner: str, base: Path) -> Sink:
    """The sink that a run file asks for; on Ray, Ray's.

    Args:
        config: that table of the run file.
        runner: `local` or `ray`.
        base: folder that relative paths in it start from.

    Raises:
        RunStopped: the port is taken, or the file cannot be written.
    """
    if runner == "ray":
        return ray_sink()
    if config.port or config.textfile:
        textfile = str(base / Path(config.textfile).expanduser()) if config.textfile else ""
        return PrometheusSink(port=config.port, address=config.address, textfile=textfile)
    return Nowhere()


def check_metrics(config: MetricsConfig, base: Path) -> None:
    """What of :func:`sink_of` can be seen without writing a file: for a dry run of the local runner.

    Raises:
        ConfigError: the file's name is none of a metrics file, or its folder is not there.
        RunStopped: the port cannot be opened.
    """
    if config.port:
        try:
            socket.create_server((config.address, config.port)).close()
        except OSError as error:
            raise _no_port(config.address, config.port, error) from None
    if config.textfile:
        path = base / Path(config.textfile).expanduser()
        _require_metrics_name(str(path))
        if not path.parent.is_dir():
            what = "the metrics file cannot be written (there is no such folder)"
            raise ConfigError(what, where=f"metrics.textfile: {path}", fix="Make its folder, or remove the key")


def _require_metrics_name(textfile: str) -> None:
    if not textfile.endswith(".prom"):
        fix = "Let its name end in .prom, as node_exporter's textfile collector wants it"
        raise ConfigError("is not the name of a metrics file", where=f"metrics.textfile: {textfile}", fix=fix)


def _no_port(address: str, port: int, error: OSError) -> RunStopped:
    what = f"metrics cannot be served at {address}:{port} ({error.strerror or error})"
    return RunStopped(what, where="metrics.port", fix="Choose another port, or 0 for none")


class PrometheusSink:
    """Counts in this process, with ``prometheus_client``.

    Args:
        port: to serve them at; 0: none.
        address: of the interface that it is served at.
        textfile: to write them to; empty: none. It is replaced whole, so that a reader never sees half of it.

    Raises:
        RunStopped: the port is taken, or the file cannot be written.
    """

    def __init__(self, *, port: int = 0, address: str = "127.0.0.1", textfile: str = "") -> None:
        import prometheus_client as prometheus

        self.registry = prometheus.CollectorRegistry()
        self._metrics: dict[str, Any] = {}
        for name, metric in METRICS.items():
            if metric.kind != "gauge":  # a gauge that nobody set would be 0, which may mean something: it is not exported
                self._of(name)
        self._textfile, self._written = textfile, 0.0
        self._server: Any = None
        if port:
            try:
                self._server, _ = prometheus.start_http_server(port, addr=address, registry=self.registry)
            except OSError as error:
                raise _no_port(address, port, error) from error
        if textfile:
            _require_metrics_name(textfile)
            self.flush(now=True)

    def add(self, name: str, value: float = 1.0, **labels: str) -> None:
        self._child(name, labels).inc(value)

    def put(self, name: str, value: float, **labels: str) -> None:
        self._child(name, labels).set(value)

    def observe(self, name: str, value: float) -> None:
        self._metrics[name].observe(value)

    def flush(self, *, now: bool = False) -> None:
        import prometheus_client as prometheus

        if not self._textfile or not (now or time.monotonic() - self._written > WRITE_EVERY):
            return
        first, self._written = not self._written, time.monotonic()
        try:
            prometheus.write_to_textfile(self._textfile, self.registry)
        except OSError as error:
            if not first:  # a run does not stop for its metrics; the collector reports a file that has become old
                return
            raise RunStopped(
                f"the metrics file cannot be written ({error.strerror or error})",
                where=f"metrics.textfile: {self._textfile}",
                fix="Make its folder, or remove the key",
            ) from error

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _child(self, name: str, labels: dict[str, str]) -> Any:
        metric = self._of(name)
        return metric.labels(**labels) if labels else metric

    def _of(self, name: str) -> Any:
        import prometheus_client as prometheus

        if name not in self._metrics:
            metric = METRICS[name]
            more: dict[str, Any] = {"labelnames": metric.labels, "registry": self.registry}
            if metric.kind == "histogram":
                self._metrics[name] = prometheus.Histogram(name, metric.text, buckets=metric.buckets, **more)
            else:
                kinds: dict[str, Any] = {"counter": prometheus.Counter, "gauge": prometheus.Gauge}
                self._metrics[name] = kinds[metric.kind](name, metric.text, **more)
        return self._metrics[name]


class RaySink:
    """Counts through ``ray.util.metrics``: every node's agent exports what its processes counted, ``ray_`` before the names.

    What comes before Ray was started in this process is left out; gauges are set again with every event.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, Any] = {}

    def add(self, name: str, value: float = 1.0, **labels: str) -> None:
        if value > 0 and (metric := self._metric(name)) is not None:  # Ray refuses to add 0
            metric.inc(value, tags=labels)

    def put(self, name: str, value: float, **labels: str) -> None:
        if (metric := self._metric(name)) is not None:
            metric.set(value, tags=labels)

    def observe(self, name: str, value: float) -> None:
        if (metric := self._metric(name)) is not None:
            metric.observe(value)

    def flush(self, *, now: bool = False) -> None: ...
    def close(self) -> None: ...

    def _metric(self, name: str) -> Any:
        import ray
        from ray.util import metrics

        if not ray.is_initialized():
            return None
        if name not in self._metrics:
            metric = METRICS[name]
            if metric.kind == "histogram":
                made: Any = metrics.Histogram(
                    name, description=metric.text, boundaries=list(metric.buckets), tag_keys=metric.labels
                )
            else:
                kind = {"counter": metrics.Counter, "gauge": metrics.Gauge}[metric.kind]
                made = kind(name, description=metric.text, tag_keys=metric.labels)
            self._metrics[name] = made
        return self._metrics[name]


@cache
def ray_sink() -> RaySink:
    """The one of this process: Ray knows each name once."""
    return RaySink()
