"""Figures of a group with every source that there may be: what is known, where it comes from, and None for the rest."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from urllib.parse import quote

import pytest

from brokerkit import GroupStats, Manager
from brokerkit.clock import SystemClock
from brokerkit.errors import TopicNotFound
from brokerkit.settings import Settings
from brokerkit.spi import ConnectOptions
from brokerkit.testing.deadlines import eventually_sync
from brokerkit.testing.services.ports import free_port
from brokerkit.testing.services.rabbitmq import RabbitMQControl
from brokerkit_rabbitmq.backend import RabbitMQBackend
from brokerkit_rabbitmq.management import Management
from brokerkit_rabbitmq.settings import parse_settings
from tests.planted import PLANTED
from tests.rabbitmq.peers import LONG, connected, peer

MANAGEMENT, PROMETHEUS, PLAIN = "AMQP, management API", "AMQP, Prometheus", "AMQP"


@pytest.fixture
def source(shared_node: RabbitMQControl) -> Callable[..., str]:
    """URL options that name these sources."""
    address = shared_node.address
    urls = {
        "management": f"http://{address.host}:{address.management_port}",
        "prometheus": f"http://{address.host}:{address.prometheus_port}",
    }

    def source(*names: str, **others: str) -> str:
        given = {**{name: urls[name] for name in names}, **others}
        return "?" + "&".join(f"{name}_url={quote(url, safe='')}" for name, url in given.items())

    return source


@pytest.fixture
def loaded(shared_node: RabbitMQControl, vhost: str) -> Iterator[str]:
    """A group with three messages that are ready, two that are unsettled and one dead letter; the URL of the host."""
    url = shared_node.address.url(vhost)
    with connected(url) as manager, peer(url) as channel:
        manager.admin.declare("orders", "billing")
        manager.send_many("orders", range(5))
        channel.basic_publish("", "orders:billing:dead", b"dead")
        channel.basic_qos(prefetch_count=2)
        channel.basic_consume("orders:billing", lambda *_: None)
        yield url


def figures(manager: Manager) -> GroupStats:
    return manager.monitor.stats("orders", "billing")


def settled(manager: Manager) -> GroupStats:
    """The figures once the source's own sample has caught up."""
    eventually_sync(lambda: figures(manager).unsettled == 2, within=LONG, what="two unsettled")
    return figures(manager)


@pytest.mark.parametrize(
    ("names", "said"),
    [(("management",), MANAGEMENT), (("prometheus",), PROMETHEUS), (("management", "prometheus"), MANAGEMENT)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_figures_say_where_they_come_from(
    loaded: str, source: Callable[..., str], names: tuple[str, ...], said: str
) -> None:
    before = SystemClock().time()
    with connected(loaded + source(*names, **({} if "management" in names else {"management": ""}))) as manager:
        stats = settled(manager)

        assert (stats.ready, stats.unsettled, stats.dead, stats.consumers) == (3, 2, 1, 1)
        assert stats.source == said
        assert before <= stats.as_of <= SystemClock().time()
        # RabbitMQ does not know these of a group.
        assert (stats.delayed, stats.oldest_age) == (None, None)


def test_without_an_api_only_what_amqp_says_is_known(loaded: str, source: Callable[..., str]) -> None:
    for options in ("", source(management="")):
        with connected(loaded + options) as manager:
            stats = figures(manager)

        assert (stats.ready, stats.dead, stats.consumers, stats.source) == (3, 1, 1, PLAIN)
        assert (stats.unsettled, stats.delayed, stats.oldest_age) == (None, None, None)


def test_an_api_that_does_not_answer_is_the_same_as_none(loaded: str, source: Callable[..., str]) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    with connected(loaded + source(management=gone, prometheus=gone)) as manager:
        assert (figures(manager).source, figures(manager).unsettled, figures(manager).ready) == (PLAIN, None, 3)


@pytest.mark.parametrize("url", ["http://h:port", "http://[h", "file:///etc/passwd", "h:15672", "ht tp://h"])
def test_an_address_that_is_none_is_the_same_as_none(loaded: str, source: Callable[..., str], url: str) -> None:
    with connected(loaded + source(management=url, prometheus=url)) as manager:
        assert (figures(manager).source, figures(manager).ready) == (PLAIN, 3)


def test_where_the_management_api_does_not_answer_prometheus_does(loaded: str, source: Callable[..., str]) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    with connected(loaded + source("prometheus", management=gone)) as manager:
        assert settled(manager).source == PROMETHEUS


@pytest.mark.parametrize("others", [(), ("prometheus",)], ids=["alone", "with Prometheus"])
def test_a_user_whom_the_management_api_refuses_gets_the_figures_of_the_others(
    shared_node: RabbitMQControl, vhost: str, loaded: str, source: Callable[..., str], others: tuple[str, ...]
) -> None:
    user = f"user-{secrets.token_hex(4)}"
    # Without the tag "management" a user may not ask it.
    shared_node.add_user(user, PLANTED)
    shared_node.set_permissions(user, vhost)
    try:
        url = shared_node.address.url(vhost, user=user, password=PLANTED)
        with connected(url + source("management", *others)) as manager:
            stats = settled(manager) if others else figures(manager)

        assert stats.ready == 3
        assert (stats.source, stats.unsettled) == ((PROMETHEUS, 2) if others else (PLAIN, None))
    finally:
        shared_node.delete_user(user)


def test_the_management_api_takes_a_login_of_its_own(
    shared_node: RabbitMQControl, vhost: str, loaded: str, source: Callable[..., str]
) -> None:
    user, observer = f"user-{secrets.token_hex(4)}", f"user-{secrets.token_hex(4)}"
    shared_node.add_user(user, "other")
    shared_node.add_user(observer, PLANTED, tags=["monitoring"])
    shared_node.set_permissions(user, vhost)
    shared_node.set_permissions(observer, vhost, configure="^$", write="^$", read="^$")
    try:
        url = shared_node.address.url(vhost, user=user, password="other")
        api = shared_node.address.management_url(user=observer, password=PLANTED)
        with connected(url + source(management=api)) as manager:
            assert settled(manager).source == MANAGEMENT
    finally:
        shared_node.delete_user(user)
        shared_node.delete_user(observer)


def test_a_group_without_a_queue_for_its_dead_letters_has_no_figure_for_them(
    shared_node: RabbitMQControl, vhost: str
) -> None:
    url = shared_node.address.url(vhost)
    configuration = "topics: {jobs: {declare: never, groups: {workers: {rabbitmq: {queue: jobs}}}}}"
    with peer(url) as channel, connected(url, configuration) as manager:
        channel.queue_declare("jobs", durable=True)

        stats = manager.monitor.stats("jobs", "workers")
        assert (stats.ready, stats.dead) == (0, None)


def test_figures_of_a_group_that_is_missing_are_an_error(
    shared_node: RabbitMQControl, vhost: str, source: Callable[..., str]
) -> None:
    with connected(shared_node.address.url(vhost) + source("management")) as manager:
        with pytest.raises(TopicNotFound, match="no queue 'orders:billing'"):
            manager.monitor.stats("orders", "billing")
        assert shared_node.queue("orders:billing", vhost) is None


def test_a_login_that_a_function_gives_is_not_made_up_for_the_management_api(
    shared_node: RabbitMQControl, vhost: str, loaded: str, source: Callable[..., str]
) -> None:
    address = shared_node.address
    section = {"host": address.host, "port": address.port, "vhost": vhost, "credentials": lambda: ("guest", "guest")}
    api = f"http://{address.host}:{address.management_port}"
    for url, said in ((api, PLAIN), (api.replace("//", "//guest:guest@"), MANAGEMENT)):
        settings = Settings.model_validate({"rabbitmq": {**section, "management_url": url}})
        with Manager(backend=RabbitMQBackend(), settings=settings) as manager:
            assert figures(manager).source == said


@pytest.mark.parametrize(
    ("url", "tried"),
    [
        ("amqp://h", ["http://h:15672"]),
        ("amqp://h1,[::1]:5672,h3:5673", ["http://h1:15672", "http://[::1]:15672"]),
        ("amqps://h", ["https://h:15671"]),
        ("amqp://h?management_url=", []),
        ("amqps://h?management_url=http://m:80", ["http://m:80"]),
    ],
)
def test_the_management_api_is_looked_for_beside_the_broker(url: str, tried: list[str]) -> None:
    assert Management(*parse_settings(ConnectOptions(url=url))).urls == tried
