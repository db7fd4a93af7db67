"""Users who may do a part only: what works for them, what is refused, and that the error says so."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pika import BasicProperties

from brokerkit import Capability, Delivery, Reject
from brokerkit.errors import AccessRefused, CapabilityNotSupported
from brokerkit.testing.deadlines import eventually_sync
from brokerkit.testing.services.rabbitmq import RabbitMQControl
from tests.planted import PLANTED
from tests.rabbitmq.peers import LONG, connected, peer, take

NOTHING = "^$"
ALL = ".*"
#: A regular expression for what brokerkit declares for delays.
DELAYS = r"bk\.(delay|due)\."

Url = Callable[[str, str, str], str]

#: The queue of a group that somebody else declares.
EXISTING = """
send_timeout: 2
topics:
  jobs:
    declare: never
    rabbitmq: {exchange: jobs, exchange_type: direct, routing_key: jobs}
    groups:
      workers: {rabbitmq: {queue: jobs, dead_queue: jobs.dead}}
"""


@pytest.fixture
def url_of(shared_node: RabbitMQControl, vhost: str) -> Iterator[Url]:
    """The URL of a new user with these permissions: configure, write, read."""
    made: list[str] = []

    def url_of(configure: str, write: str, read: str) -> str:
        name = f"user-{secrets.token_hex(4)}"
        shared_node.add_user(name, PLANTED)
        made.append(name)
        shared_node.set_permissions(name, vhost, configure=configure, write=write, read=read)
        return shared_node.address.url(vhost, user=name, password=PLANTED)

    yield url_of
    for name in made:
        shared_node.delete_user(name)


@pytest.fixture
def admin(shared_node: RabbitMQControl, vhost: str) -> Iterator[Any]:
    """A channel of the administrator, who declared the topology of `EXISTING`."""
    with peer(shared_node.address.url(vhost)) as channel:
        channel.exchange_declare("jobs", "direct", durable=True)
        channel.queue_declare("jobs", durable=True)
        channel.queue_declare("jobs.dead", durable=True)
        channel.queue_bind("jobs", "jobs", "jobs")
        yield channel


def refused(act: Callable[[], Any]) -> str:
    with pytest.raises(AccessRefused) as caught:
        act()
    assert not caught.value.retryable
    assert PLANTED not in str(caught.value)
    return caught.value.message


def test_a_user_who_may_nothing_connects_and_is_refused_at_every_call(url_of: Url, admin: Any) -> None:
    with connected(url_of(NOTHING, NOTHING, NOTHING), EXISTING) as manager:
        assert manager.monitor.health().healthy
        assert Capability.DELAYED_SEND not in manager.capabilities("jobs")
        said = refused(lambda: manager.send("jobs", "x"))
        assert "403" in said and "exchange 'jobs'" in said
        said = refused(lambda: manager.admin.declare("orders", "billing"))
        assert "exchange 'orders'" in said
        assert "queue 'jobs'" in refused(lambda: manager.admin.purge("jobs", "workers"))
        with pytest.raises(AccessRefused, match="queue 'jobs'"), manager.consume("jobs", group="workers") as found:
            next(iter(found))
        # To look at figures needs no permission.
        assert manager.monitor.stats("jobs", "workers").ready == 0


def test_a_user_without_access_to_the_virtual_host_is_told_so(shared_node: RabbitMQControl, vhost: str) -> None:
    name = f"user-{secrets.token_hex(4)}"
    shared_node.add_user(name, PLANTED)
    try:
        with connected(shared_node.address.url(vhost, user=name, password=PLANTED)) as manager:
            said = refused(manager.connect)
            assert f"vhost '{vhost}'" in said and "may this user use it" in said
    finally:
        shared_node.delete_user(name)


def test_a_publisher_needs_to_write_to_the_exchange_and_nothing_else(url_of: Url, admin: Any) -> None:
    with connected(url_of(NOTHING, "^jobs$", NOTHING), EXISTING) as manager:
        manager.send("jobs", "one")
        assert take(admin, "jobs").body == b"one"

        with pytest.raises(CapabilityNotSupported, match="delayed-send"):
            manager.send("jobs", "later", delay=1)
        with pytest.raises(AccessRefused, match="queue 'jobs'"), manager.consume("jobs", group="workers") as found:
            next(iter(found))
        # One that is refused takes no other with it.
        assert "exchange 'others'" in refused(lambda: manager.send("others", "x"))
        manager.send("jobs", "two")
        assert take(admin, "jobs").body == b"two"


def test_a_publisher_who_may_declare_the_wheel_can_delay(url_of: Url, admin: Any) -> None:
    # To bind an exchange needs write on the destination and read on the source; to dead-letter, as declared here,
    # read on the queue and write on the exchange.
    user = url_of(f"^{DELAYS}", f"^(jobs$|{DELAYS})", f"^{DELAYS}")
    with connected(user, EXISTING) as manager:
        manager.connect()
        assert Capability.DELAYED_SEND in manager.capabilities("jobs")
        manager.send("jobs", "later", delay=0.3)
        assert take(admin, "jobs").body == b"later"


def test_a_consumer_needs_to_read_the_queue_and_to_write_to_the_default_exchange(url_of: Url, admin: Any) -> None:
    done: list[str] = []
    with connected(url_of(NOTHING, r"^amq\.default$", "^jobs$"), EXISTING) as manager:

        @manager.handler("jobs", group="workers")
        def work(text: str) -> None:
            done.append(text)
            if text == "bad":
                raise Reject("no")

        manager.start()
        for body in (b"good", b"bad"):
            admin.basic_publish("jobs", "jobs", body)
        letter = take(admin, "jobs.dead")
        assert (letter.body, letter.headers["bk-dead-reason"]) == (b"bad", "rejected")
        assert done == ["good", "bad"]
        assert "exchange 'jobs'" in refused(lambda: manager.send("jobs", "x"))


def test_a_retry_where_delays_are_not_allowed_comes_all_the_same(url_of: Url, admin: Any) -> None:
    attempts: list[int] = []
    configuration = EXISTING.replace("declare: never", "declare: never\n    retry: {base_delay: 0.2, jitter: none}")
    with connected(url_of(NOTHING, r"^amq\.default$", "^jobs$"), configuration) as manager:

        @manager.handler("jobs", group="workers")
        def work(text: str, delivery: Delivery) -> None:
            attempts.append(delivery.attempt)
            if delivery.attempt < 3:
                raise ConnectionError("again")

        manager.start()
        admin.basic_publish("jobs", "jobs", b"text")
        eventually_sync(lambda: attempts == [1, 2, 3], within=LONG)


def test_a_consumer_who_may_write_nothing_keeps_what_it_cannot_pass_on(
    shared_node: RabbitMQControl, vhost: str, admin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    user = f"user-{secrets.token_hex(4)}"
    shared_node.add_user(user, PLANTED)
    shared_node.set_permissions(user, vhost, configure=NOTHING, write=NOTHING, read="^jobs$")
    try:
        with connected(shared_node.address.url(vhost, user=user, password=PLANTED), EXISTING) as manager:

            @manager.handler("jobs", group="workers")
            def work(text: str) -> None:
                raise Reject("no")

            manager.start()
            admin.basic_publish("jobs", "jobs", b"text")
            eventually_sync(lambda: "is refused for good" in caplog.text, within=LONG)
            assert "access to exchange 'amq.default'" in caplog.text
            shared_node.set_permissions(user, vhost, configure=NOTHING, write=r"^amq\.default$", read="^jobs$")
            assert take(admin, "jobs.dead").body == b"text"
    finally:
        shared_node.delete_user(user)


def test_who_declares_topics_needs_all_three_on_their_names(url_of: Url, shared_node: RabbitMQControl) -> None:
    names = f"^(orders($|:)|{DELAYS})"
    with connected(url_of(names, rf"{names}|^amq\.default$", names), "send_timeout: 5") as manager:
        manager.admin.declare("orders", "billing")
        manager.send("orders", "text")
        manager.send("orders", "text", delay=0.1)
        eventually_sync(lambda: manager.monitor.lag("orders", "billing").ready == 2, within=LONG)
        assert manager.admin.purge("orders", "billing") == 2
        manager.admin.delete("orders")
        assert "exchange 'shop'" in refused(lambda: manager.admin.declare("shop", "billing"))


def test_requests_need_an_inbox_and_answers_the_default_exchange(url_of: Url, admin: Any) -> None:
    inbox = r"^bk\.inbox\."
    user = url_of(inbox, r"^(jobs|amq\.default)$", rf"^jobs$|{inbox}")
    with connected(user, EXISTING) as manager, connected(url_of(NOTHING, "^jobs$", NOTHING), EXISTING) as other:

        @manager.handler("jobs", group="workers")
        async def answer(text: str) -> str:
            return text.upper()

        manager.start()
        assert manager.request("jobs", "text", reply=str, timeout=LONG) == "TEXT"
        assert "bk.inbox." in refused(lambda: other.request("jobs", "text", reply=str, timeout=LONG))


def test_a_broadcast_needs_a_queue_of_the_brokers_naming(url_of: Url, admin: Any) -> None:
    seen: list[str] = []
    with connected(url_of(r"^amq\.gen", r"^amq\.gen", r"^(amq\.gen|jobs$)"), EXISTING) as manager:

        @manager.handler("jobs", broadcast=True)
        def hear(text: str) -> None:
            seen.append(text)

        manager.start()
        admin.basic_publish("jobs", "jobs", b"text")
        eventually_sync(lambda: seen == ["text"], within=LONG)


def test_dead_letters_are_for_who_may_read_them_and_keep_others_away(url_of: Url, admin: Any) -> None:
    user = url_of(r"^bk\.reader\.", r"^amq\.default$", r"^jobs\.dead$")
    with connected(url_of(NOTHING, r"^amq\.default$", ALL), EXISTING) as other:
        assert "queue 'bk.reader." in refused(lambda: other.admin.dead_letters("jobs", "workers"))
    with connected(user, EXISTING) as manager:
        for body in (b"one", b"two"):
            admin.basic_publish("", "jobs.dead", body, BasicProperties(message_id=body.decode()))
        assert [letter.id for letter in manager.admin.dead_letters("jobs", "workers")] == ["one", "two"]
        assert manager.admin.redrive("jobs", "workers", ["one"]) == 1
        assert manager.admin.discard("jobs", "workers", ["two"]) == 1
        assert take(admin, "jobs").body == b"one"
