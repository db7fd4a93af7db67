"""The C++ client as the wheel ``rocketmq`` 0.4.4 binds it, told what to do line by line: see process.py.

Runs in an environment of its own, without brokerkit.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qsl

from rocketmq.client import Message, Producer, PushConsumer

_OUT = threading.Lock()


def say(**fields: Any) -> None:
    with _OUT:
        print(json.dumps(fields), flush=True)


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Program:
    def __init__(self, name_server: str, *login: str) -> None:
        self.name_server = name_server
        self.login = login
        self.producer = Producer("cpp-producers", timeout=20_000)
        self._set_up(self.producer)
        self.producer.start()
        self.consumer: Any = None
        # Destroying one, which its end does, kills the process when a callback is under way.
        self.consumers: list[Any] = []

    def _set_up(self, client: Any) -> None:
        client.set_namesrv_addr(self.name_server)
        if self.login:
            client.set_session_credentials(*self.login, "")

    def message(self, told: dict[str, str]) -> Any:
        message = Message(told["topic"])
        message.set_body(base64.b64decode(told["body"]))
        if "tag" in told:
            message.set_tags(told["tag"])
        if "keys" in told:
            message.set_keys(told["keys"])
        if "level" in told:
            message.set_delay_time_level(int(told["level"]))
        for name, value in told.items():
            if name.startswith("p."):
                message.set_property(name[2:], value)
        return message

    def send(self, told: dict[str, str]) -> None:
        result = self.producer.send_sync(self.message(told))
        say(sent={"id": result.msg_id, "status": result.status.name, "offset": result.offset})

    def consume(self, told: dict[str, str]) -> None:
        # It can only be asked for properties by their names.
        names = [name for name in told.get("want", "").split(",") if name]
        failing = int(told.get("fail", "0"))

        def handle(message: Any) -> None:
            properties = {name: message.get_property(name) for name in names}
            say(
                message={
                    "topic": message.topic,
                    "body": base64.b64encode(message.body or b"").decode(),
                    "tag": text(message.tags),
                    "keys": text(message.keys),
                    "properties": {name: text(value) for name, value in properties.items() if value},
                    "id": message.id,
                    "broker": None,
                    "queue": message.queue_id,
                    "offset": message.queue_offset,
                    "reconsumed": message.reconsume_times,
                    "time": time.time(),
                }
            )
            if message.reconsume_times < failing:
                raise ValueError("told to fail")

        self.consumer = self.subscribed(told, handle)
        say(consuming=True)

    def subscribed(self, told: dict[str, str], handle: Any) -> Any:
        consumer = PushConsumer(told["group"], orderly="ordered" in told)
        self.consumers.append(consumer)
        self._set_up(consumer)
        consumer.subscribe(told["topic"], handle, told.get("tag", "*"))
        consumer.start()
        return consumer

    def stop(self, told: dict[str, str]) -> None:
        if self.consumer is not None:
            self.consumer.shutdown()
            self.consumer = None
        say(stopped=True)

    def rate_send(self, told: dict[str, str]) -> None:
        """``window`` threads, each one message after the other."""
        count, threads = int(told["count"]), int(told.get("window", "1"))
        body = b"x" * int(told["size"])

        def work(_: int) -> int:
            message = Message(told["topic"])
            message.set_body(body)
            sent = 0
            for _ in range(count // threads):
                # With several threads some sends find no route, which another thread is just replacing.
                with contextlib.suppress(Exception):
                    self.producer.send_sync(message)
                    sent += 1
            return sent

        with ThreadPoolExecutor(threads) as pool:
            began, used = time.perf_counter(), cpu()
            sent = sum(pool.map(work, range(threads)))
            seconds, used = time.perf_counter() - began, cpu() - used
        say(count=sent, seconds=seconds, cpu=used, failed=count // threads * threads - sent)

    def rate_consume(self, told: dict[str, str]) -> None:
        count, seen = int(told["count"]), 0
        began = used = 0.0
        figures: list[dict[str, float]] = []
        lock, done = threading.Lock(), threading.Event()

        def handle(message: Any) -> None:
            nonlocal seen, began, used
            with lock:
                seen += 1
                if seen == 1:
                    began, used = time.perf_counter(), cpu()
                elif seen == count:
                    figures.append({"seconds": time.perf_counter() - began, "cpu": cpu() - used})
                    done.set()

        consumer = self.subscribed(told, handle)
        try:
            if not done.wait(float(told.get("patience", "120"))):
                raise RuntimeError(f"handled {seen} of {count}")
        finally:
            consumer.shutdown()
        say(count=count - 1, **figures[0])


def text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def main() -> None:
    program = Program(*sys.argv[1:])
    say(ready=True)
    for line in sys.stdin:
        told = dict(parse_qsl(line.rstrip("\n"), keep_blank_values=True))
        try:
            getattr(program, told.pop("do").replace("-", "_"))(told)
        except Exception as error:
            say(error=f"{type(error).__name__}: {error}")
    if program.consumer is not None:
        program.consumer.shutdown()
    program.producer.shutdown()
    sys.stdout.flush()
    os._exit(0)


main()
