"""``brokerkit dead``: read, redrive and discard dead letters."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import typer

from brokerkit.admin import DeadLetter
from brokerkit.cli.broker import FAILED, WRONG, Broker, complain, fail, help_of, on_broker
from brokerkit.cli.output import AsJson, body_of, duration, print_json, print_table, printable
from brokerkit.clock import SystemClock

__all__ = ["dead"]

_Topic = Annotated[str, typer.Argument(metavar="TOPIC", help="The topic.")]
_Group = Annotated[str, typer.Argument(metavar="GROUP", help="The group that gave them up.")]
_Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Message ids; without any: all.")]
_Limit = Annotated[int | None, typer.Option(metavar="N", min=1, help="At most so many, the oldest first.")]

#: Characters of a text that a table shows.
_PREVIEW = 60
#: Dead letters among which ids are looked for.
_SEARCHED = 100_000


def _show_list(broker: Broker, topic: _Topic, group: _Group, limit: _Limit = 100, as_json: AsJson = False) -> None:
    """List dead letters, the oldest first, with their reasons. Reading disturbs nothing.

    \b
    Example:
      brokerkit dead list orders billing --limit 20
    """
    with broker.connected(reads=True) as manager:
        letters = manager.admin.dead_letters(topic, group, limit or 100)
    if as_json:
        print_json([_data(letter) for letter in letters])
        return
    if not letters:
        typer.echo(f"no dead letters: {topic} / {group}")
        return
    now = SystemClock().time()
    columns = ("id", "reason", ">attempts", ">age", "error", "body")
    print_table(columns, [_row(letter, now) for letter in letters])


def _show(
    broker: Broker, topic: _Topic, group: _Group, ids: _Ids = None, limit: _Limit = 10, as_json: AsJson = False
) -> None:
    """Show dead letters with everything that is known: error, traceback, times, headers and body.

    \b
    Examples:
      brokerkit dead show orders billing
      brokerkit dead show orders billing 66f0c1… --json
    """
    with broker.connected(reads=True) as manager:
        letters = manager.admin.dead_letters(topic, group, _SEARCHED if ids else limit or 10)
    if ids:
        letters = [letter for letter in letters if letter.message.message_id in ids]
    missing = set(ids or ()) - {letter.message.message_id or "" for letter in letters}
    if missing and not letters:
        fail(f"no such dead letter: {', '.join(sorted(missing))} ({topic} / {group})")
    if as_json:
        print_json([_data(letter) for letter in letters])
    elif letters:
        typer.echo("\n\n".join(_text(letter) for letter in letters))
    if missing:
        complain(f"no such dead letter: {', '.join(sorted(missing))} ({topic} / {group})")
        raise typer.Exit(FAILED)
    if not letters and not as_json:
        typer.echo(f"no dead letters: {topic} / {group}")


def _redrive(
    broker: Broker, topic: _Topic, group: _Group, ids: _Ids = None, limit: _Limit = None, as_json: AsJson = False
) -> None:
    """Send dead letters back to the group that gave them up, as new: attempt 1, same id, no ttl.

    \b
    Examples:
      brokerkit dead redrive orders billing --limit 1
      brokerkit dead redrive orders billing
    """
    with broker.connected(reads=True) as manager:
        count = manager.admin.redrive(topic, group, ids or None, limit=limit)
    _tell(count, "redriven", topic, group, ids, as_json)


def _discard(
    broker: Broker,
    topic: _Topic,
    group: _Group,
    ids: _Ids = None,
    limit: _Limit = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", metavar="", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete dead letters for good. Asks first, unless --yes is given.

    \b
    Examples:
      brokerkit dead discard orders billing 66f0c1…
      brokerkit dead discard orders billing --yes
    """
    with broker.connected(reads=True) as manager:
        if not yes:
            what = f"{len(ids)} dead letters" if ids else (f"the oldest {limit}" if limit else "ALL dead letters")
            _ask(f"Delete {what} of {topic} / {group} for good?")
        count = manager.admin.discard(topic, group, ids or None, limit=limit)
    _tell(count, "discarded", topic, group, ids, as_json)


def dead() -> typer.Typer:
    """Return the commands below ``dead``."""
    commands = typer.Typer(help="Read, redrive and discard dead letters.", no_args_is_help=True)
    for name, command in (("list", _show_list), ("show", _show), ("redrive", _redrive), ("discard", _discard)):
        commands.command(name, help=help_of(command))(on_broker(command))
    return commands


def _ask(question: str) -> None:
    try:
        sure = typer.confirm(question, err=True)
    except typer.Abort:
        # No answer: not a terminal, or Ctrl-C.
        typer.echo(err=True)
        fail("nothing was deleted; --yes answers the question", WRONG)
    if not sure:
        fail("nothing was deleted")


def _tell(count: int, verb: str, topic: str, group: str, ids: list[str] | None, as_json: bool) -> None:
    if as_json:
        print_json({"topic": topic, "group": group, verb: count})
    else:
        typer.echo(f"{count} {verb}: {topic} / {group}")
    if ids and count < len(set(ids)):
        complain(f"{len(set(ids)) - count} of the ids are no dead letters of {topic} / {group}")
        raise typer.Exit(FAILED)


def _row(letter: DeadLetter, now: float) -> tuple[str, ...]:
    error = ": ".join(part for part in (letter.error_type, letter.error) if part)
    age = duration(now - letter.last_failure) if letter.last_failure is not None else "?"
    body = letter.message.body.decode(errors="replace")
    found = (letter.message.message_id or "?", letter.reason or "?", str(letter.attempts), age)
    return (*found, _cut(error), _cut(body))


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _PREVIEW else f"{line[: _PREVIEW - 1]}…"


def _text(letter: DeadLetter) -> str:
    message = letter.message
    facts = {
        "id": message.message_id,
        "reason": letter.reason,
        "error": ": ".join(part for part in (letter.error_type, letter.error) if part),
        "attempts": letter.attempts,
        "first failure": _instant(letter.first_failure),
        "last failure": _instant(letter.last_failure),
        "host": letter.host,
        "key": message.key,
        "tag": message.tag,
        "type": message.type,
        "headers": ", ".join(f"{name}={value}" for name, value in message.headers.items()),
    }
    lines = [f"{name + ':':<15}{value}" for name, value in facts.items() if value not in (None, "")]
    if letter.traceback:
        lines += ["traceback:", *(f"  {line}" for line in letter.traceback.rstrip().splitlines())]
    body = message.body.decode(errors="replace")
    return printable("\n".join([*lines, "body:", *(f"  {line}" for line in body.splitlines())]))


def _instant(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def _data(letter: DeadLetter) -> dict[str, Any]:
    message = letter.message
    facts = asdict(letter)
    del facts["message"]
    return {
        "message_id": message.message_id,
        **facts,
        "key": message.key,
        "tag": message.tag,
        "type": message.type,
        "headers": dict(message.headers),
        "content_type": message.content_type,
        **body_of(message.body),
    }
