"""``brokerkit status`` and ``brokerkit lag``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from brokerkit.blocking import Manager
from brokerkit.cli.broker import FAILED, Broker, fail
from brokerkit.cli.output import AsJson, duration, figure, print_json, print_table
from brokerkit.cli.serve import broker_of
from brokerkit.clock import SystemClock
from brokerkit.errors import BrokerError, TopicNotFound
from brokerkit.export_manager import CONSUMER_GROUP, TOPIC
from brokerkit.spi import GroupStats
from brokerkit.state_files import WorkerState, read_states

__all__ = ["lag", "status"]


def status(
    broker: Broker,
    topic: Annotated[str | None, typer.Argument(metavar="TOPIC", help="Only this topic.")] = None,
    group: Annotated[str | None, typer.Argument(metavar="GROUP", help="Only this group of it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the figures of topics and groups, and the workers on this host.

    Without arguments it shows every group that the configuration names or a worker on this host handles.
    A handler that does not return is shown with the seconds it has been at work. "?" means that the broker
    does not say. Exit code 1: the broker does not answer, or the group does not exist.

    \b
    Examples:
      brokerkit status
      brokerkit status orders billing --json
    """
    now = SystemClock().time()
    workers = read_states()
    try:
        with broker.connected(reads=True) as manager:
            here = broker_of(manager.settings)
            workers = [one for one in workers if one.broker == here]
            found = _figures(manager, workers, topic, group)
    except TopicNotFound:
        raise
    except BrokerError as error:
        # What the workers say is all there is to see while the broker is down.
        if workers and not as_json:
            _print_workers(workers, now)
        raise error
    if topic is not None:
        workers = [one for one in workers if any(topic == name for name, _ in one.groups)]
    if as_json:
        print_json(
            {
                "broker": here,
                "groups": [asdict(one) for one in found],
                "workers": [{**asdict(one), "condition": one.condition(now)} for one in workers],
            }
        )
        return
    typer.echo(f"broker: {here}")
    if found:
        columns = ("topic", "group", ">ready", ">in work", ">delayed", ">dead", ">consumers", ">oldest")
        print_table(columns, [_row(one) for one in found])
        if topic is None:
            typer.echo("groups that the configuration or a worker names; any other: brokerkit status TOPIC GROUP")
    elif topic is None:
        typer.echo(
            "no group is known here: name one (brokerkit status TOPIC GROUP), list topics in brokerkit.yaml, "
            "or start a worker"
        )
    _print_workers(workers, now)


def lag(
    broker: Broker,
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="The topic.")],
    group: Annotated[str, typer.Argument(metavar="GROUP", help="The group.")],
    as_json: AsJson = False,
) -> None:
    """Show how far one group is behind. "?" means that the broker does not say.

    \b
    Examples:
      brokerkit lag orders billing
      brokerkit lag orders billing --json | jq .ready
    """
    with broker.connected(reads=True) as manager:
        found = manager.monitor.lag(topic, group)
    if as_json:
        print_json(asdict(found))
        return
    rows = [
        ("ready", figure(found.ready)),
        ("in work", figure(found.unsettled)),
        ("delayed", figure(found.delayed)),
        ("oldest", duration(found.oldest_age)),
    ]
    print_table(("", f">{topic} / {group}"), rows)


def _figures(manager: Manager, workers: list[WorkerState], topic: str | None, group: str | None) -> list[GroupStats]:
    if topic is not None and group is not None:
        return [manager.monitor.stats(topic, group)]
    named = {(name, one) for name, spec in manager.topology.items() for one in spec.groups}
    named |= {pair for worker in workers for pair in worker.groups if pair[1]}
    settings = manager.settings
    named.add((settings.topic or TOPIC, settings.consumer_group or CONSUMER_GROUP))
    if topic is not None:
        named = {pair for pair in named if pair[0] == topic}
        if not named:
            fail(f"no group of topic {topic!r} is known here; name one: brokerkit status {topic} GROUP", FAILED)
    found = []
    for pair in sorted(named):
        try:
            found.append(manager.monitor.stats(*pair))
        except TopicNotFound:
            # Named by the configuration, by a broadcast consumer or by default, and not declared: nothing to count.
            continue
    return found


def _row(stats: GroupStats) -> tuple[str, ...]:
    counts = (stats.ready, stats.unsettled, stats.delayed, stats.dead, stats.consumers)
    return (stats.topic, stats.group, *(figure(one) for one in counts), duration(stats.oldest_age))


def _print_workers(workers: list[WorkerState], now: float) -> None:
    if not workers:
        return
    rows = []
    for worker in workers:
        condition = worker.condition(now)
        shown = condition if condition == "running" else f"{condition} since {duration(now - worker.beat)}"
        up = "-" if condition == "stale" else duration(now - worker.started)
        topics = ", ".join(sorted({topic for topic, _ in worker.groups}))
        rows.append((worker.id, str(worker.pid), shown, up, topics, str(worker.in_flight), _at_work(worker)))
    typer.echo()
    columns = ("worker", ">pid", "condition", ">up", "topics", ">in work", "handlers at work")
    print_table(columns, rows)
    if any(worker.condition(now) == "stale" for worker in workers):
        typer.echo("stale: the process is gone without having stopped; its work returns to the group by itself")


def _at_work(worker: WorkerState) -> str:
    parts: dict[str, Any] = {name: f"{name} {duration(seconds)}" for name, seconds in worker.longest.items()}
    for name, seconds in worker.stuck.items():
        parts[name] = f"{name} STUCK: {duration(seconds)} over its timeout"
    return "\n".join(parts.values()) or "-"
