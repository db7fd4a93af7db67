"""A web application with FastAPI: it takes orders, stores them with the broker, and answers at once.

    uvicorn examples.web:app                      # needs: pip install '.[http]'
    brokerkit worker examples.web:mq              # in another terminal: bills the orders; prints "billed order 1"
    curl -i -d '{"id": 1, "total": 9.5}' -H 'content-type: application/json' http://127.0.0.1:8000/orders
    curl -i http://127.0.0.1:8000/health

The lifespan connects when the server starts and closes when it stops; a broker that is down ends the start, with
the reason.  While the server runs and the broker does not answer, clients get 503 and may repeat their request:
with the same Idempotency-Key it becomes a message with the same id, which an idempotent handler handles once.

Where the handlers run:

- In a worker of its own, as above: the rule.  It is started, stopped and multiplied without the web server, and
  what it computes does not hold up requests.
- In the web server, with WEB_HANDLES=1: enough for one small service with light async handlers.  Then each process
  of the server handles messages, and a restart of the server stops them too.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from brokerkit import AsyncManager, BrokerError, Topic


class Order(BaseModel):
    id: int
    total: float


orders = Topic("web.orders", Order, groups=["billing"])
mq = AsyncManager(send_timeout=5)  # seconds; a client does not wait for the 30 that a batch job would


@mq.handler(orders)
async def bill(order: Order) -> None:
    print(f"billed order {order.id}", flush=True)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with mq:
        if os.environ.get("WEB_HANDLES") == "1":
            await mq.start()
        yield  # leaving drains the handlers, then closes


app = FastAPI(lifespan=lifespan)


@app.exception_handler(BrokerError)
async def broker_error(request: Request, error: BrokerError) -> JSONResponse:
    """Answer for every route: 503 where the same request may succeed later."""
    if error.retryable:
        return JSONResponse({"error": str(error)}, 503, {"retry-after": "5"})
    return JSONResponse({"error": str(error)}, 500)


@app.post("/orders", status_code=202)
async def create(order: Order, idempotency_key: Annotated[str | None, Header()] = None) -> dict[str, str]:
    return {"message_id": await mq.send(orders, order, key=str(order.id), message_id=idempotency_key)}


@app.get("/health")
async def health() -> JSONResponse:
    found = await mq.monitor.health(timeout=2)
    return JSONResponse({"status": found.status, "problems": found.problems}, 200 if found.healthy else 503)
