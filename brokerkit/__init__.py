"""One message API over RabbitMQ, RocketMQ and an embedded broker that needs no server.

manager = Manager()                       # BROKERKIT_URL or brokerkit.yaml chooses the broker
manager.send("orders", {"id": 1})         # returns when the message is stored
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from brokerkit.admin import Admin, DeadLetter
from brokerkit.blocking import Manager
from brokerkit.blocking_admin import BlockingAdmin, BlockingMonitor
from brokerkit.blocking_deliveries import BlockingDeliveries
from brokerkit.blocking_delivery import BlockingDelivery
from brokerkit.clock import Clock, SystemClock
from brokerkit.deliveries import Deliveries
from brokerkit.delivery import Delivery
from brokerkit.envelope import SendOptions
from brokerkit.errors import (
    AccessRefused,
    AlreadySettled,
    BrokerError,
    BrokerUnavailable,
    CapabilityNotSupported,
    Closed,
    ConfigurationError,
    DecodeError,
    MessageTooLarge,
    PayloadError,
    Reject,
    RemoteError,
    ReplyTimeout,
    Retry,
    SendRefused,
    SendTimeout,
    TopicNotFound,
    TopologyConflict,
    Unroutable,
)
from brokerkit.events import ErrorEvent
from brokerkit.manager import AsyncManager
from brokerkit.message import Message
from brokerkit.metrics import LatencySummary, MetricsSnapshot
from brokerkit.monitor import Health, Lag, Monitor, QueueStatus
from brokerkit.producer import SendOutcome
from brokerkit.results import ConsumeResult, MessageResult
from brokerkit.retry import RetryPolicy
from brokerkit.router import Router
from brokerkit.spi import Capability, GroupStats
from brokerkit.topic import Group, Topic

if TYPE_CHECKING:
    from brokerkit.export import ExportTask
    from brokerkit.export_manager import ExportManager
    from brokerkit.managers import get_async_manager, get_manager, initialize
    from brokerkit.settings import Settings, TopicSettings

__all__ = [
    # the managers and what is registered with them
    "AsyncManager",
    "Manager",
    "ExportManager",
    "get_manager",
    "get_async_manager",
    "initialize",
    "Router",
    "Topic",
    "Group",
    "RetryPolicy",
    "Settings",
    "TopicSettings",
    # messages and deliveries
    "Message",
    "Delivery",
    "Deliveries",
    "BlockingDelivery",
    "BlockingDeliveries",
    "SendOptions",
    "SendOutcome",
    # what handlers return and raise
    "MessageResult",
    "ConsumeResult",
    "ExportTask",
    "Reject",
    "Retry",
    # administration and figures
    "Admin",
    "DeadLetter",
    "Monitor",
    "BlockingAdmin",
    "BlockingMonitor",
    "Health",
    "Lag",
    "QueueStatus",
    "GroupStats",
    "MetricsSnapshot",
    "LatencySummary",
    "Capability",
    "ErrorEvent",
    # time
    "Clock",
    "SystemClock",
    # errors
    "BrokerError",
    "BrokerUnavailable",
    "AccessRefused",
    "TopicNotFound",
    "TopologyConflict",
    "SendRefused",
    "SendTimeout",
    "MessageTooLarge",
    "Unroutable",
    "CapabilityNotSupported",
    "Closed",
    "AlreadySettled",
    "ConfigurationError",
    "PayloadError",
    "DecodeError",
    "ReplyTimeout",
    "RemoteError",
]


#: Names that load on first use: they need pydantic models.  The first one that a process makes has pydantic look
#: through all installed distributions for plug-ins, which would be a fifth of the time that the import takes.
_LAZY = {
    "ExportManager": "brokerkit.export_manager",
    "ExportTask": "brokerkit.export",
    "get_async_manager": "brokerkit.managers",
    "get_manager": "brokerkit.managers",
    "initialize": "brokerkit.managers",
    "Settings": "brokerkit.settings",
    "TopicSettings": "brokerkit.settings",
}


def __getattr__(name: str) -> object:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(module), name)
