"""The FastAPI example: within the test's process on virtual time, and served by uvicorn with a worker beside it."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from brokerkit.testing import eventually_sync, in_memory
from examples import web

ROOT = Path(__file__).resolve().parent.parent.parent

#: Seconds for whatever must happen at some time on a machine that has other work.
SOON = 120


class Process(NamedTuple):
    process: subprocess.Popen[bytes]
    log: Path

    def has_said(self, pattern: str) -> str | None:
        found = re.search(pattern, self.log.read_text(encoding="utf-8", errors="replace"))
        return found[0] if found else None

    def says(self, pattern: str) -> str:
        eventually_sync(lambda: self.has_said(pattern) is not None or self.process.poll() is not None, within=SOON)
        found = self.has_said(pattern)
        assert found is not None, self.log.read_text(encoding="utf-8", errors="replace")
        return found

    def stops(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(SOON)


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def begin(name: str, *command: str, **variables: str) -> Process:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("BROKERKIT_", "RABBITMQ_"))}
        broker = {"PYTHONPATH": str(ROOT), "BROKERKIT_URL": "sqlite:///work.db", "XDG_RUNTIME_DIR": str(tmp_path)}
        log = tmp_path / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=tmp_path,
                env={**kept, **broker, **variables},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        started.append(process)
        return Process(process, log)

    yield begin
    for process in started:
        process.kill()
        process.wait()


def serve(start: Start, **variables: str) -> tuple[Process, httpx.Client]:
    server = start("server", "-m", "uvicorn", "examples.web:app", "--port", "0", **variables)
    return server, httpx.Client(base_url=server.says(r"http://127\.0\.0\.1:\d+"), timeout=SOON)


async def test_an_order_is_stored_and_billed() -> None:
    transport = httpx.ASGITransport(web.app)
    async with (
        in_memory(web.mq) as broker,
        web.app.router.lifespan_context(web.app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        created = await client.post("/orders", json={"id": 1, "total": 9.5}, headers={"idempotency-key": "order-1"})
        health = await client.get("/health")
        wrong = await client.post("/orders", json={"id": "one"})
        await broker.advance()

    assert (created.status_code, created.json()) == (202, {"message_id": "order-1"})
    assert (health.status_code, health.json()) == (200, {"status": "up", "problems": []})
    assert wrong.status_code == 422
    assert [each.message.payload(web.Order) for each in broker.handled] == [web.Order(id=1, total=9.5)]


async def test_the_health_of_a_closed_manager_is_503() -> None:
    transport = httpx.ASGITransport(web.app)
    async with in_memory(web.mq), httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        await web.mq.aclose()
        health = await client.get("/health")

    assert (health.status_code, health.json()["status"]) == (503, "closed")


def test_a_worker_bills_what_the_server_took(start: Start) -> None:
    server, client = serve(start)
    with client:
        assert client.post("/orders", json={"id": 1, "total": 9.5}).status_code == 202
        assert client.get("/health").json() == {"status": "up", "problems": []}
    worker = start("worker", str(Path(sys.executable).with_name("brokerkit")), "worker", "examples.web:mq")

    worker.says("billed order 1")
    worker.stops()
    server.stops()

    assert worker.process.returncode == 0
    assert server.has_said("Application shutdown complete")
    assert not server.has_said("billed|Traceback")


def test_server_and_worker_run_unchanged_on_rocketmq(start: Start, rocketmq_url: str) -> None:
    server, client = serve(start, BROKERKIT_URL=rocketmq_url)
    with client:
        assert client.post("/orders", json={"id": 7, "total": 9.5}).status_code == 202
        assert client.get("/health").json() == {"status": "up", "problems": []}
    command = (str(Path(sys.executable).with_name("brokerkit")), "worker", "examples.web:mq")
    worker = start("worker", *command, BROKERKIT_URL=rocketmq_url)

    worker.says("billed order 7")
    worker.stops()
    server.stops()
    assert worker.process.returncode == 0
    assert not server.has_said("Traceback")


def test_the_server_may_handle_by_itself(start: Start) -> None:
    server, client = serve(start, WEB_HANDLES="1")
    with client:
        client.post("/orders", json={"id": 1, "total": 9.5})

    server.says("billed order 1")
    server.stops()
    assert not server.has_said("Traceback")


def test_clients_get_503_while_the_broker_does_not_answer(start: Start, tmp_path: Path) -> None:
    server, client = serve(start)
    order, key = {"id": 1, "total": 9.5}, {"idempotency-key": "order-1"}
    with client, closing(sqlite3.connect(tmp_path / "work.db", isolation_level=None)) as other:
        assert client.post("/orders", json=order).status_code == 202
        other.execute("BEGIN IMMEDIATE")  # a program that keeps the file for itself
        refused = client.post("/orders", json=order, headers=key)
        other.execute("ROLLBACK")
        accepted = client.post("/orders", json=order, headers=key)

    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "5"
    assert "work.db" in refused.json()["error"]
    assert (accepted.status_code, accepted.json()) == (202, {"message_id": "order-1"})
    assert not server.has_said("Traceback")
