"""The RabbitMQ tests' node and virtual hosts, for clients of other projects."""

from __future__ import annotations

from tests.rabbitmq.conftest import shared_node, vhost

__all__ = ["shared_node", "vhost"]
