"""Asking a running RabbitMQ node by Erlang: expressions in milliseconds, rabbitmqctl in half a second and more."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from brokerkit.errors import BrokerError, BrokerUnavailable
from brokerkit.testing.services.rabbitmq_address import RabbitMQAddress
from brokerkit.testing.services.rabbitmq_installation import Installation

__all__ = ["ErlangTerminal", "binary"]

#: Seconds that an answer may take.
_TIMEOUT = 60.0

#: Prints one line of JSON: {"value": …} or {"error": "…"}.
_ASK = (
    "io:put_chars([try rabbit_json:encode(#{{value => begin {} end}}) catch Class:Reason -> "
    "rabbit_json:encode(#{{error => unicode:characters_to_binary(io_lib:format("
    '"~0p:~0tp", [Class, Reason]))}}) end, 10]).\n'
)


class ErlangTerminal:
    """Runs expressions and rabbitmqctl on the node at `address`."""

    def __init__(self, address: RabbitMQAddress, installation: Installation) -> None:
        self.address = address
        self.installation = installation

    def evaluate(self, expression: str) -> Any:
        """Return what an Erlang expression yields; it must be what JSON can hold.

        The expression is ASCII: write any text of a user's as `binary`.
        Erlang's binaries are strings here and its maps dicts; anything but null, true and false that is an atom is
        a string.  `BrokerError` when the expression fails, `BrokerUnavailable` when the node does not answer.
        """
        question = _ASK.format(expression)
        program = self.installation.erlang("erl_call")
        if program is None:
            answer = self.ctl("eval", question)
        else:
            # -R lets the node choose the name of this end, so that many may ask at once.
            asking = [program, "-sname", self.address.node, "-R", "-fetch_stdout", "-e"]
            answer = self._run(asking, question)
        line = answer.partition("\n")[0]
        try:
            found = json.loads(line)
        except ValueError:
            raise BrokerError(f"{self.address.node} did not understand an expression: {answer.strip()[:500]}") from None
        if "error" in found:
            raise BrokerError(f"an expression failed on {self.address.node}: {found['error'][:1000]}")
        return found["value"]

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl and return what it prints; `BrokerError` with its words when it fails."""
        program = self.installation.program("rabbitmqctl")
        return self._run([program, "--quiet", "--node", self.address.node, *arguments])

    def _run(self, command: list[str], text: str = "") -> str:
        environment = {
            "HOME": self.address.home,
            "ERL_EPMD_PORT": str(self.address.mapper_port),
            "RABBITMQ_CONF_ENV_FILE": f"{self.address.directory}/none",
            # The default is eleven ports, for all tools of a machine.
            "RABBITMQ_CTL_DIST_PORT_MIN": "32768",
            "RABBITMQ_CTL_DIST_PORT_MAX": "60999",
        }
        line = self.installation.run(command, environment, Path(self.address.directory))
        try:
            ended = subprocess.run(line, input=text, capture_output=True, text=True, timeout=_TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise BrokerUnavailable(f"{self.address.node} did not answer within {_TIMEOUT:g} s") from error
        if ended.returncode != 0:
            said = (ended.stderr.strip() or ended.stdout.strip())[-1000:]
            kind = BrokerError if command[0].endswith("rabbitmqctl") else BrokerUnavailable
            raise kind(f"{command[0].rpartition('/')[2]} on {self.address.node} failed: {said}")
        return ended.stdout


def binary(text: str) -> str:
    """Return a text as Erlang writes a binary of its UTF-8 bytes."""
    return f"<<{','.join(str(byte) for byte in text.encode())}>>"
