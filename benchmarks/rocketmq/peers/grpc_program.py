"""The official gRPC client of 5.x, told what to do line by line: see process.py.

Runs in an environment of its own, without brokerkit.
"""

from __future__ import annotations

import base64
import json
import resource
import sys
import threading
import time
from typing import Any
from urllib.parse import parse_qsl

from rocketmq import (
    ClientConfiguration,
    ConsumeResult,
    Credentials,
    FilterExpression,
    Message,
    MessageListener,
    Producer,
    PushConsumer,
    SimpleConsumer,
)

_OUT = threading.Lock()
#: Seconds that a received message stays with its consumer, and that a receive waits.
_INVISIBLE, _AWAIT = 60, 5
#: Receives that may fail before that is said.
_FAILURES = 30


def say(**fields: Any) -> None:
    with _OUT:
        print(json.dumps(fields), flush=True)


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Listener(MessageListener):
    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def consume(self, message: Any) -> Any:
        self._handle()
        return ConsumeResult.SUCCESS


class Program:
    def __init__(self, endpoint: str, *login: str) -> None:
        self.configuration = ClientConfiguration(endpoint, Credentials(*login), request_timeout=20)
        self.producers: dict[str, Any] = {}
        self.consumer: Any = None
        self.stopping = threading.Event()
        self.reader: threading.Thread | None = None

    def producer(self, topic: str) -> Any:
        if topic not in self.producers:
            self.producers[topic] = Producer(self.configuration, (topic,))
            self.producers[topic].startup()
        return self.producers[topic]

    def message(self, topic: str, body: bytes) -> Any:
        message = Message()
        message.topic, message.body = topic, body
        return message

    def send(self, told: dict[str, str]) -> None:
        message = self.message(told["topic"], base64.b64decode(told["body"]))
        if "tag" in told:
            message.tag = told["tag"]
        if "keys" in told:
            message.keys = told["keys"]
        if "deliver" in told:
            message.delivery_timestamp = int(told["deliver"]) // 1000
        for name, value in told.items():
            if name.startswith("p."):
                message.add_property(name[2:], value)
        receipt = self.producer(told["topic"]).send(message)
        say(sent={"id": receipt.message_id, "offset": receipt.offset})

    def simple(self, told: dict[str, str]) -> Any:
        subscription = {told["topic"]: FilterExpression(told.get("tag", "*"))}
        consumer = SimpleConsumer(self.configuration, told["group"], subscription, _AWAIT)
        consumer.startup()
        return consumer

    def consume(self, told: dict[str, str]) -> None:
        self.consumer = self.simple(told)
        self.stopping.clear()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        say(consuming=True)

    def read(self) -> None:
        failures = 0
        while not self.stopping.is_set():
            try:
                for message in self.consumer.receive(32, _INVISIBLE):
                    self.consumer.ack(message)
                    say(
                        message={
                            "topic": message.topic,
                            "body": base64.b64encode(message.body).decode(),
                            "tag": message.tag,
                            "keys": " ".join(sorted(message.keys)) or None,
                            "properties": dict(message.properties),
                            "id": message.message_id,
                            "broker": None,
                            "queue": None,
                            "offset": None,
                            "reconsumed": message.delivery_attempt - 1,
                            "time": time.time(),
                        }
                    )
            except Exception as error:
                # It starts before the proxy has its settings: "settings is null".
                failures += 1
                if not self.stopping.wait(1.0) and failures == _FAILURES:
                    say(error=f"{type(error).__name__}: {error}")
                    return

    def stop(self, told: dict[str, str]) -> None:
        self.end_consumer()
        say(stopped=True)

    def end_consumer(self) -> None:
        self.stopping.set()
        if self.reader is not None:
            self.reader.join(_AWAIT + 20)
            self.reader = None
            self.consumer.shutdown()

    # --- rates ---

    def rate_send(self, told: dict[str, str]) -> None:
        """``window`` 1: one after the other; else `send_async` with so many in flight."""
        count, window, topic = int(told["count"]), int(told.get("window", "1")), told["topic"]
        body = b"x" * int(told["size"])
        producer = self.producer(topic)
        failed = 0
        began, used = time.perf_counter(), cpu()
        if window == 1:
            for _ in range(count):
                producer.send(self.message(topic, body))
        else:
            room = threading.Semaphore(window)

            def done(future: Any) -> None:
                nonlocal failed
                failed += future.exception() is not None
                room.release()

            for _ in range(count):
                room.acquire()
                producer.send_async(self.message(topic, body)).add_done_callback(done)
            for _ in range(window):
                room.acquire()
        say(count=count, seconds=time.perf_counter() - began, cpu=cpu() - used, failed=failed)

    def rate_consume(self, told: dict[str, str]) -> None:
        """A push consumer; ``mode`` simple: receive and acknowledge in a loop."""
        count, seen = int(told["count"]), 0
        began = used = 0.0
        figures: list[dict[str, float]] = []
        lock, done = threading.Lock(), threading.Event()

        def note() -> None:
            nonlocal seen, began, used
            with lock:
                seen += 1
                if seen == 1:
                    began, used = time.perf_counter(), cpu()
                elif seen == count:
                    figures.append({"seconds": time.perf_counter() - began, "cpu": cpu() - used})
                    done.set()

        patience = time.monotonic() + float(told.get("patience", "120"))
        if told.get("mode") == "simple":
            consumer = self.simple(told)
            while not done.is_set() and time.monotonic() < patience:
                for message in consumer.receive(32, _INVISIBLE):
                    consumer.ack(message)
                    note()
        else:
            subscription = {told["topic"]: FilterExpression("*")}
            consumer = PushConsumer(self.configuration, told["group"], Listener(note), subscription)
            consumer.startup()
            done.wait(patience - time.monotonic())
        consumer.shutdown()
        if not figures:
            raise RuntimeError(f"handled {seen} of {count}")
        say(count=count - 1, **figures[0])


def main() -> None:
    program = Program(*sys.argv[1:])
    say(ready=True)
    for line in sys.stdin:
        told = dict(parse_qsl(line.rstrip("\n"), keep_blank_values=True))
        try:
            getattr(program, told.pop("do").replace("-", "_"))(told)
        except Exception as error:
            say(error=f"{type(error).__name__}: {error}")
    program.end_consumer()
    for producer in program.producers.values():
        producer.shutdown()


main()
