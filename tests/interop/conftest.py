"""The servers of the RabbitMQ and the RocketMQ tests, for clients of other projects."""

from __future__ import annotations

from tests.rabbitmq.conftest import shared_node, vhost
from tests.rocketmq.conftest import rocketmq, rocketmq_new, rocketmq_old

__all__ = ["rocketmq", "rocketmq_new", "rocketmq_old", "shared_node", "vhost"]
