"""The table of docs/rocketmq.md, on servers with an ACL: who has what a row names may do it, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from brokerkit import AccessRefused, Manager, Reject, RetryPolicy
from brokerkit.settings import Settings
from brokerkit.testing.deadlines import eventually_sync
from brokerkit.testing.services.rocketmq import RocketMQAccount, RocketMQOptions, RocketMQServer
from brokerkit_rocketmq.backend import RocketMQBackend
from tests.rocketmq.servers import NEW, OLD, installation_or_skip

TOPIC, GROUP = "orders", "billing||orders"
DEAD, INBOX = f"%DLQ%{GROUP}", "bk|inbox"
#: Seconds on a loaded machine.
LONG = 120.0


def account(name: str, topics: Mapping[str, str], groups: Mapping[str, str] | None = None) -> RocketMQAccount:
    return RocketMQAccount(access_key=f"the-{name}", secret_key=f"{name}-secret", topics=topics, groups=groups or {})


def accounts(old: bool) -> dict[str, RocketMQAccount]:
    read = "SUB" if old else "SUB|GET"
    return {
        "sender": account("sender", {TOPIC: "PUB"}),
        "asker": account("asker", {TOPIC: "PUB", INBOX: read}, {INBOX: "SUB"}),
        "worker": account("worker", {TOPIC: read, DEAD: "PUB", INBOX: "PUB"}, {GROUP: read, f"{GROUP}||h": "SUB"}),
        "reader": account(
            "reader",
            {DEAD: "PUB|SUB" if old else "PUB|SUB|GET"},
            {f"{GROUP}||dead": read, GROUP: "SUB"},
        ),
        "listener": account("listener", {TOPIC: read}, {f"{GROUP}||b": "SUB"}),
        "observer": account(
            "observer",
            {} if old else {TOPIC: "GET", DEAD: "GET"},
            {GROUP: "SUB"} if old else {one: "GET" for one in (GROUP, f"{GROUP}||h", f"{GROUP}||dead")},
        ),
    }


class Guarded:
    """A server with an ACL, on which an administrator has declared the topic and its group."""

    def __init__(self, server: RocketMQServer, users: Mapping[str, RocketMQAccount]) -> None:
        self._server = server
        self._users = users

    def manager(self, user: str | None = None) -> Manager:
        url = self._server.address.url(self._users[user].login if user else None)
        topics = {TOPIC: {"declare": "never" if user else "auto", "groups": {"billing": {"start": "earliest"}}}}
        return Manager(url, backend=RocketMQBackend(), settings=Settings.model_validate({"topics": topics}))


@pytest.fixture(scope="module", params=[OLD, NEW])
def guarded(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    installation = installation_or_skip(request.param)
    users = accounts(installation.major == 4)
    options = RocketMQOptions(acl=True, accounts=tuple(users.values()))
    with RocketMQServer(options, installation=installation) as server:
        made = Guarded(server, users)
        server.create_topic(INBOX)
        with made.manager() as administrator:
            administrator.admin.declare(TOPIC, "billing")
        yield made


def test_each_row_of_the_table_is_enough(guarded: Guarded) -> None:
    handled: list[str] = []

    def handle(body: str) -> None:
        handled.append(body)
        if body == "reject":
            raise Reject("no good")
        if body == "retry" and handled.count(body) == 1:
            raise ConnectionError("again")

    with guarded.manager("sender") as sender:
        sender.send(TOPIC, "retry")
        assert [one.error for one in sender.send_many(TOPIC, ["reject", "good"])] == [None, None]
        sender.send(TOPIC, "late", delay=1.5)

    with guarded.manager("worker") as worker:
        retry = RetryPolicy(max_attempts=3, base_delay=0.1, jitter="none")
        worker.add_handler(TOPIC, handle, group="billing", retry=retry)
        worker.start()
        expected = ["good", "late", "reject", "retry", "retry"]
        eventually_sync(lambda: sorted(handled) == expected, within=LONG, what="every message handled")

    with guarded.manager("observer") as observer:
        assert observer.monitor.stats(TOPIC, "billing").dead == 1

    with guarded.manager("reader") as reader:
        assert [one.reason for one in reader.admin.dead_letters(TOPIC, "billing")] == ["rejected"]
        assert reader.admin.redrive(TOPIC, "billing") == 1
        assert reader.admin.dead_letters(TOPIC, "billing") == []


def test_a_listener_needs_the_group_of_broadcasts(guarded: Guarded) -> None:
    heard: list[str] = []

    def listen(body: str) -> None:
        heard.append(body)

    with guarded.manager("listener") as listener, guarded.manager("sender") as sender:
        listener.add_handler(TOPIC, listen, group="billing", broadcast=True)
        listener.start()

        def is_heard() -> bool:
            sender.send(TOPIC, "all")
            return bool(heard)

        eventually_sync(is_heard, within=LONG, what="a broadcast")


def test_a_request_needs_the_topic_of_all_inboxes(guarded: Guarded) -> None:
    def answer(body: str) -> str:
        return body.upper()

    with guarded.manager("worker") as worker, guarded.manager("asker") as asker:
        worker.add_handler(TOPIC, answer, group="billing")
        worker.start()
        assert asker.request(TOPIC, "question", reply=str, timeout=LONG) == "QUESTION"


def test_what_a_user_may_not_do_is_refused_without_its_secret(guarded: Guarded) -> None:
    with guarded.manager("listener") as listener, pytest.raises(AccessRefused) as sent:
        listener.send(TOPIC, "no")
    with guarded.manager("sender") as sender, pytest.raises(AccessRefused) as declared:
        sender.admin.declare("others", "billing")
    for refused in (sent, declared):
        assert not refused.value.retryable
        assert "secret" not in str(refused.value).replace("secret_key", "")
    assert TOPIC in str(sent.value) and "others" in str(declared.value)
