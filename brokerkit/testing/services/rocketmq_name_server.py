"""A private NameServer of RocketMQ."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from brokerkit.errors import BrokerUnavailable
from brokerkit.testing.services.rocketmq_java import FIRST_COMPILER, PROBE_TIMEOUT, JavaNode
from brokerkit.testing.services.rocketmq_wire import ask

__all__ = ["RocketMQNameServer", "registered_brokers"]

#: org.apache.rocketmq.remoting.protocol.RequestCode
_GET_BROKER_CLUSTER_INFO = 106


class RocketMQNameServer(JavaNode):
    """Knows in memory which brokers there are and which topics they have; after a start they tell it within 10 s."""

    name: ClassVar[str] = "rocketmq-namesrv"

    def prepare(self) -> None:
        super().prepare()
        lines = [f"listenPort={self.port}", f"bindAddress={self.host}", f"kvConfigPath={self.directory}/kv.json"]
        self.write("namesrv.conf", "\n".join(lines))

    def command(self) -> Sequence[str]:
        return self.run(
            "org.apache.rocketmq.namesrv.NamesrvStartup",
            ["-c", f"{self.directory}/namesrv.conf"],
            ["-Xms16m", "-Xmx64m", "-XX:MaxDirectMemorySize=64m", FIRST_COMPILER],
        )

    def probe(self) -> None:
        registered_brokers(self.address)


def registered_brokers(name_server: str) -> dict[tuple[str, int], str]:
    """Return the brokers that a NameServer tells to clients: "host:port" by name and id.

    `BrokerUnavailable` when it does not answer.
    """
    answer = ask(name_server, _GET_BROKER_CLUSTER_INFO, timeout=PROBE_TIMEOUT)
    if answer.code != 0:
        raise BrokerUnavailable(f"the NameServer {name_server} answers {answer.code} {answer.remark}")
    # The keys are bare numbers, which is no JSON: "broker-a":{"brokerAddrs":{0:"127.0.0.1:10911"},"brokerName":…
    return {
        (broker["name"], int(address[1])): address[2]
        for broker in re.finditer(r'"(?P<name>[^"]+)":\{"brokerAddrs":\{(?P<addresses>[^}]*)\}', answer.body.decode())
        for address in re.finditer(r'"?(\d+)"?:"([^"]*)"', broker["addresses"])
    }
