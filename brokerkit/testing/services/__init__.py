"""Finding or starting the brokers that tests talk to: an address in the environment, local binaries, Docker.

A broker becomes known by an entry point of the group ``brokerkit.services`` that names a `ServiceProvider`.
"""

from __future__ import annotations

from brokerkit.testing.services.docker import docker_missing
from brokerkit.testing.services.finding import (
    PROVIDER_GROUP,
    find_service,
    is_required,
    load_providers,
    service_or_skip,
)
from brokerkit.testing.services.node import PrivateNode
from brokerkit.testing.services.ports import free_port, free_ports
from brokerkit.testing.services.service import Controllable, ExternalService, Missing, Service, ServiceProvider

__all__ = [
    # using
    "find_service",
    "service_or_skip",
    "is_required",
    "Service",
    "Controllable",
    "Missing",
    # providing
    "PROVIDER_GROUP",
    "ServiceProvider",
    "ExternalService",
    "PrivateNode",
    "docker_missing",
    "free_port",
    "free_ports",
    "load_providers",
]
