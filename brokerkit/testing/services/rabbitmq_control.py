"""What an operator does to a running RabbitMQ node: users, virtual hosts, queues, alarms, connections."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from brokerkit.clock import SystemClock
from brokerkit.errors import BrokerUnavailable
from brokerkit.testing.services.rabbitmq_erlang import ErlangTerminal, binary

__all__ = ["QueueState", "RabbitMQControl"]

_US = binary("brokerkit tests")

#: Seconds that the server may take to do what it was told.
_TIMEOUT = 60.0
_PAUSE = 0.05

#: RabbitMQ's own defaults, which end the alarms: a part of the machine's memory, and bytes of free disk.
_MEMORY_LIMIT = "0.4"
_DISK_LIMIT = 50_000_000

_QUEUES = """
    Show = fun(Q) ->
        {resource, _, _, Name} = amqqueue:get_name(Q),
        {Ready, Consumers} = try rabbit_amqqueue:stat(Q) of {ok, R, C} -> {R, C}; _ -> {null, null}
            catch _:_ -> {null, null} end,
        Unacked = try rabbit_amqqueue:info(Q, [messages_unacknowledged]) of [{_, U}] when is_integer(U) -> U; _ -> null
            catch _:_ -> null end,
        #{name => Name, type => amqqueue:get_type(Q), durable => amqqueue:is_durable(Q),
          arguments => maps:from_list([{K, V} || {K, _, V} <- amqqueue:get_arguments(Q), not is_list(V)]),
          ready => Ready, consumers => Consumers, unacked => Unacked} end,
"""


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue as its node knows it."""

    name: str
    #: "classic", "quorum" or "stream".
    type: str
    durable: bool
    #: Without those that are lists or tables.
    arguments: Mapping[str, Any]
    #: As of now; None when the queue's process does not answer.
    ready: int | None
    consumers: int | None
    #: Up to a second old.
    unacked: int | None


class RabbitMQControl(ErlangTerminal):
    """The operator's view of the node at `address`, from whatever process.  All methods block."""

    name: ClassVar[str] = "rabbitmq"
    origin: ClassVar[str] = "local"

    @property
    def url(self) -> str:
        """The URL of the virtual host "/", as the administrator."""
        return self.address.url()

    @property
    def management_url(self) -> str:
        """The URL of the management API, with the administrator's login."""
        return self.address.management_url()

    # --- users and virtual hosts ------------------------------------------------------------------------------

    def add_user(self, user: str, password: str, *, tags: Iterable[str] = ()) -> None:
        """Add a user that may do nothing yet.  Tags are such as "management", "monitoring", "administrator"."""
        atoms = ",".join(f"binary_to_atom({binary(tag)}, utf8)" for tag in tags)
        self.evaluate(
            f"ok = rabbit_auth_backend_internal:add_user({binary(user)}, {binary(password)}, {_US}), "
            f"ok = rabbit_auth_backend_internal:set_tags({binary(user)}, [{atoms}], {_US})"
        )

    def delete_user(self, user: str) -> None:
        """Delete a user; its connections are closed."""
        self.evaluate(f"ok = rabbit_auth_backend_internal:delete_user({binary(user)}, {_US})")

    def set_password(self, user: str, password: str) -> None:
        """Change a user's password; open connections stay."""
        self.evaluate(f"ok = rabbit_auth_backend_internal:change_password({binary(user)}, {binary(password)}, {_US})")

    def set_permissions(
        self, user: str, vhost: str = "/", *, configure: str = ".*", write: str = ".*", read: str = ".*"
    ) -> None:
        """Let a user do what the regular expressions match in a virtual host; "^$" matches nothing."""
        patterns = ", ".join(binary(pattern) for pattern in (configure, write, read))
        self.evaluate(
            f"ok = rabbit_auth_backend_internal:set_permissions({binary(user)}, {binary(vhost)}, {patterns}, {_US})"
        )

    def add_vhost(self, vhost: str) -> None:
        """Add a virtual host in which the administrator may do everything."""
        self.evaluate(f"ok = rabbit_vhost:add({binary(vhost)}, {_US})")
        self.set_permissions(self.address.user, vhost)

    def delete_vhost(self, vhost: str) -> None:
        """Delete a virtual host with its queues; its connections are closed."""
        self.evaluate(f"_ = rabbit_vhost:delete({binary(vhost)}, {_US}), null")

    # --- queues -----------------------------------------------------------------------------------------------

    def sync_queues(self) -> None:
        """Write down which quorum queues there are, which the server does half a second after a declaration.

        A kill before that leaves a queue that has lost its messages and never gets a leader, on a node of its own:
        a limit of RabbitMQ, seen with 3.10.8.
        """
        self.evaluate("lists:foreach(fun(Table) -> ok = dets:sync(Table) end, dets:all())")

    def list_queues(self, vhost: str = "/") -> list[QueueState]:
        """Return the queues of a virtual host, by name."""
        found = self.evaluate(f"{_QUEUES} [Show(Q) || Q <- rabbit_amqqueue:list({binary(vhost)})]")
        return sorted((_queue_state(fields) for fields in found), key=lambda queue: queue.name)

    def queue(self, name: str, vhost: str = "/") -> QueueState | None:
        """Return one queue, None where it does not exist."""
        found = self.evaluate(f"{_QUEUES} case {_lookup(name, vhost)} of {{ok, Q}} -> Show(Q); _ -> null end")
        return _queue_state(found) if found is not None else None

    def delete_queue(self, name: str, vhost: str = "/") -> None:
        """Delete a queue with its messages, whoever uses it."""
        self.evaluate(
            f"{{ok, Q}} = {_lookup(name, vhost)}, {{ok, _}} = rabbit_amqqueue:delete(Q, false, false, {_US}), null"
        )

    def queue_leader(self, name: str, vhost: str = "/") -> str | None:
        """Return Erlang's name of the node that leads a queue; None where there is no such queue."""
        found = self.evaluate(
            f"case {_lookup(name, vhost)} of {{ok, Q}} -> case amqqueue:get_pid(Q) of {{_, N}} -> N; "
            "P when is_pid(P) -> node(P) end; _ -> null end"
        )
        return None if found is None else str(found)

    # --- faults -----------------------------------------------------------------------------------------------

    def set_memory_alarm(self, on: bool) -> None:
        """Raise or end the memory alarm, which blocks connections that publish; return when it holds."""
        limit = "0.0" if on else _MEMORY_LIMIT
        self._set_alarm("memory", on, f"ok = vm_memory_monitor:set_vm_memory_high_watermark({limit})")

    def set_disk_alarm(self, on: bool) -> None:
        """Raise or end the disk alarm, which blocks connections that publish; return when it holds."""
        limit = 10**18 if on else _DISK_LIMIT
        self._set_alarm("disk", on, f"ok = rabbit_disk_monitor:set_disk_free_limit({limit})")

    def alarms(self) -> frozenset[str]:
        """Return which of "memory" and "disk" run short on any node of the cluster."""
        return frozenset(self.evaluate("[Kind || {{resource_limit, Kind, _}, _} <- rabbit_alarm:get_alarms()]"))

    def connections(self) -> int:
        """Return how many AMQP connections are open on this node."""
        found = self.evaluate("length(rabbit_networking:local_connections())")
        return int(found)

    def close_connections(self, reason: str = "closed by a test") -> int:
        """Close all AMQP connections of this node by 320 CONNECTION_FORCED and an ASCII ``reason``; return how many."""
        # The reason is printed by ~s into the reply text.
        found = self.evaluate(
            "Open = rabbit_networking:local_connections(), "
            f"ok = rabbit_networking:close_connections(Open, binary_to_list({binary(reason)})), length(Open)"
        )
        return int(found)

    def configure(self, name: str, value: int | bool) -> None:
        """Change a setting of the running server until its next start, such as consumer_timeout in milliseconds."""
        term = str(value).lower() if isinstance(value, bool) else str(value)
        # What 4.x looks at for every message it copies to a place of its own when it starts.
        self.evaluate(
            f"Name = binary_to_atom({binary(name)}, utf8), ok = application:set_env(rabbit, Name, {term}), "
            f"case persistent_term:get(Name, none) of none -> ok; _ -> ok = persistent_term:put(Name, {term}) end"
        )

    def stop_app(self) -> None:
        """Stop the broker and leave its process running, as ``rabbitmqctl stop_app`` does."""
        # The management plugin's handler calls the application controller, which waits for the handler: five
        # seconds, unless the handler is gone before.
        self.evaluate(
            "[gen_event:delete_handler(rabbit_event, rabbit_mgmt_db_handler, shutdown) "
            "|| lists:member(rabbit_mgmt_db_handler, gen_event:which_handlers(rabbit_event))], _ = rabbit:stop(), null"
        )

    def start_app(self) -> None:
        """Start the broker again after `stop_app`; takes a second, a fourth of a start of the process."""
        self.evaluate("ok = rabbit:start()")
        self._wait_until(self.is_ready, f"{self.address.node} did not start its broker again")

    def is_ready(self) -> bool:
        """Return whether the broker has started completely."""
        # It listens, and calls itself running, a moment before its start is over; a stop in between goes wrong.
        return self.evaluate("rabbit:is_running() andalso whereis(rabbit_boot) =:= undefined") is True

    def _set_alarm(self, kind: str, on: bool, expression: str) -> None:
        self.evaluate(expression)
        state = "raised" if on else "over"
        self._wait_until(lambda: (kind in self.alarms()) == on, f"the {kind} alarm was not {state}")

    def _wait_until(self, reached: Callable[[], bool], failure: str) -> None:
        clock = SystemClock()
        deadline = clock.monotonic() + _TIMEOUT
        never = threading.Event()
        while not reached():
            if clock.monotonic() > deadline:
                raise BrokerUnavailable(f"{failure} within {_TIMEOUT:g} s")
            never.wait(_PAUSE)


def _lookup(name: str, vhost: str) -> str:
    return f"rabbit_amqqueue:lookup(rabbit_misc:r({binary(vhost)}, queue, {binary(name)}))"


def _queue_state(fields: dict[str, Any]) -> QueueState:
    kind = str(fields.pop("type"))
    return QueueState(type=kind.removeprefix("rabbit_").removesuffix("_queue"), **fields)
