"""The plain dicts that the monitoring calls of `ExportManager` return: the shapes of the document export service."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from brokerkit.metrics import MetricsSnapshot
from brokerkit.monitor import Health
from brokerkit.settings import Settings
from brokerkit.spi import GroupStats
from brokerkit.url import BrokerUrl, redact

__all__ = ["Look", "address", "performance"]

#: The one queue of a group, where the backend does not tell its queues apart.
_ONLY_QUEUE = "0"
#: Addresses that the backends take where none is configured.
_RABBITMQ_PORT = 5672
_ROCKETMQ_ADDRESS = "localhost:9876"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one look at the broker and at this process found."""

    topic: str
    group: str
    #: Where the broker is, without a login; None when it is not known.
    address: str | None
    #: None: the backend is switched off by ``enabled: false``.
    health: Health | None
    #: None: the broker did not say.
    stats: GroupStats | None
    started: bool
    consuming: bool
    #: Wall-clock time, seconds since the epoch.
    at: float

    @property
    def connected(self) -> bool:
        """Whether the broker answered just now."""
        return self.health is not None and self.health.status in ("up", "degraded")

    @property
    def connection_status(self) -> str:
        """``connected``, ``disconnected`` or ``disabled``."""
        if self.health is None:
            return "disabled"
        return "connected" if self.connected else "disconnected"

    @property
    def total_lag(self) -> int | None:
        """Messages that the group could have and did not finish: ready and unsettled ones."""
        if self.stats is None or self.stats.ready is None:
            return None
        return self.stats.ready + (self.stats.unsettled or 0)

    @property
    def consumer_lag(self) -> dict[str, int | None]:
        """The lag of each queue, by its number, or by broker and number; what waits to be tried again is in none."""
        if self.stats is not None and self.stats.queues is not None:
            return dict(self.stats.queues)
        return {_ONLY_QUEUE: self.total_lag}

    def status(self) -> dict[str, Any]:
        """Return topic, consumer_group, health, metrics, connection and components."""
        lag = self.total_lag
        delayed = self.stats.delayed if self.stats is not None else None
        return {
            "topic": self.topic,
            "consumer_group": self.group,
            "health": self._health(),
            "metrics": {
                "total_messages": None if lag is None else lag + (delayed or 0),
                "active_queues": None if lag is None else len(self.consumer_lag),
                "consumer_lag": self.consumer_lag,
                "total_lag": lag,
            },
            "connection": {"name_server": self.address, "connected": self.connected},
            "components": {
                "producer_started": self.connected,
                "consumer_started": self.started,
                "consumer_consuming": self.consuming,
            },
        }

    def health_status(self) -> dict[str, Any]:
        """Return healthy, connection_status, total_lag, topic, consumer_group and last_check."""
        return {
            **self._health(),
            "topic": self.topic,
            "consumer_group": self.group,
            "last_check": iso(self.at),
        }

    def lag(self) -> dict[str, Any]:
        """Return the lag per queue and in all, and the age of the oldest message in seconds."""
        return {
            "topic": self.topic,
            "consumer_group": self.group,
            "consumer_lag": self.consumer_lag,
            "total_lag": self.total_lag,
            "delay_seconds": self.stats.oldest_age if self.stats is not None else None,
            "last_check": iso(self.at),
        }

    def _health(self) -> dict[str, Any]:
        return {
            "healthy": self.health is not None and self.health.healthy,
            "connection_status": self.connection_status,
            "total_lag": self.total_lag,
        }


def performance(metrics: MetricsSnapshot) -> dict[str, Any]:
    """Return throughput, latency of the handlers, error rates (0 to 1) and the time that they are about."""
    handling = metrics.latency("handle")
    return {
        "message_throughput": {
            "produced_per_second": metrics.rates["sent"],
            "consumed_per_second": metrics.rates["handled"],
        },
        "latency": {
            "average_ms": _milliseconds(handling.average),
            "p95_ms": _milliseconds(handling.p95),
            "p99_ms": _milliseconds(handling.p99),
        },
        "error_rate": {
            "send_error_rate": metrics.send_error_rate,
            "consume_error_rate": metrics.consume_error_rate,
        },
        "time_range": {"start": iso(metrics.window_start), "end": iso(metrics.window_end)},
    }


def iso(instant: float) -> str:
    """Return epoch seconds as ISO 8601 in UTC with milliseconds: ``2024-12-19T14:30:00.000Z``."""
    return datetime.fromtimestamp(instant, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def address(settings: Settings) -> str | None:
    """Return where the broker is as people write it, without user, password and options; None when not known.

    ``host:port``, several joined by commas; the path of a file; ``memory://name``.
    """
    name = settings.backend_name
    path = settings.embedded_path()
    if path is not None:
        return str(path)
    if settings.url is not None:
        url = BrokerUrl.parse(settings.url)
        if url.scheme == "memory":
            return redact(f"memory://{url.path}")
        return ",".join(host if port is None else f"{host}:{port}" for host, port in url.hosts) or None
    section = settings.native(name)
    if name == "rocketmq":
        return str(section.get("name_server", _ROCKETMQ_ADDRESS))
    if name == "rabbitmq":
        return f"{section.get('host', '127.0.0.1')}:{section.get('port', _RABBITMQ_PORT)}"
    return None


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000.0
