"""``brokerkit send`` and ``brokerkit send-export``."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from brokerkit.cli.broker import WRONG, Broker, fail
from brokerkit.cli.output import AsJson, print_json
from brokerkit.envelope import SendOptions

__all__ = ["send", "send_export"]


def send(
    broker: Broker,
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="Where to send it.")],
    body: Annotated[
        str, typer.Argument(metavar="BODY", help="The body as text; - reads it from standard input, bytes included.")
    ],
    key: Annotated[str | None, typer.Option(metavar="TEXT", help="Ordering and tracing key.")] = None,
    tag: Annotated[str | None, typer.Option(metavar="TEXT", help="Label that groups filter by.")] = None,
    type_: Annotated[
        str | None, typer.Option("--type", metavar="TEXT", help="Chooses among the handlers of a group.")
    ] = None,
    delay: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Nobody gets it earlier than so long from now.")
    ] = None,
    header: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A header; may be repeated.")] = None,
    priority: Annotated[int, typer.Option(metavar="N", min=0, max=9, help="0 (lowest) to 9.")] = 0,
    ttl: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="It is not handled any more after so long.")
    ] = None,
    json_body: Annotated[bool, typer.Option("--json-body", metavar="", help="Refuse a body that is not JSON.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send one message and print its id.

    It returns when the broker has taken responsibility for the message.

    \b
    Examples:
      brokerkit send orders '{"id": 1, "total": 9.5}' --json-body --key 1
      brokerkit send orders @home --delay 60 --header source=shell
      gzip -c report.csv | brokerkit send reports -
    """
    payload: Any = sys.stdin.buffer.read() if body == "-" else body
    if json_body:
        try:
            payload = json.loads(payload)
        except ValueError as error:
            fail(f"the body is not JSON: {error}. In a shell, put it between single quotes", WRONG)
    options: SendOptions = {"key": key, "tag": tag, "type": type_, "priority": priority, "headers": _headers(header)}
    if delay is not None:
        options["delay"] = delay
    if ttl is not None:
        options["ttl"] = ttl
    with broker.connected() as manager:
        message_id = manager.send(topic, payload, **options)
    if as_json:
        print_json({"topic": topic, "message_id": message_id})
    else:
        typer.echo(message_id)


def send_export(
    broker: Broker,
    template: Annotated[str, typer.Argument(metavar="TEMPLATE", help="The template that renders the document.")],
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="What it shows: a JSON object; - reads it from standard input.")
    ] = "{}",
    output_format: Annotated[
        str, typer.Option("--format", metavar="TEXT", help="For example docx, pdf, xlsx, csv or html.")
    ] = "pdf",
    priority: Annotated[int, typer.Option(metavar="N", min=0, max=9, help="0 (lowest) to 9.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Send one export task and print its id, which is also the name of the document.

    Topic and group are those of the configuration: topic (export_tasks), consumer_group (export_consumer_group).

    \b
    Examples:
      brokerkit send-export invoice '{"number": 7}' --format pdf
      brokerkit send-export report - --format xlsx < report.json
    """
    text = sys.stdin.read() if data == "-" else data
    try:
        values = json.loads(text)
    except ValueError as error:
        fail(f"DATA is not JSON: {error}. In a shell, put it between single quotes", WRONG)
    if not isinstance(values, dict):
        fail("DATA is a JSON object: names and values in braces", WRONG)
    with broker.connecting(broker.export_manager()) as manager:
        task_id = manager.send_export_task(template, values, output_format, priority)
    if as_json:
        print_json({"task_id": task_id, "template_id": template, "output_format": output_format})
    else:
        typer.echo(task_id)


def _headers(given: list[str] | None) -> dict[str, str]:
    headers = {}
    for one in given or ():
        name, equals, value = one.partition("=")
        if not equals or not name:
            fail(f"--header {one}: write it as name=value", WRONG)
        headers[name] = value
    return headers
