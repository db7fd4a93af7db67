"""See how far behind a group is, whether the process is well, and what it did.

What is not known is None, never a made-up 0.  `queue_status` is all of it at once; its ``to_dict()`` is plain data
for a page or an alert.  The metrics are those of this process.  From the shell: `brokerkit status`.

    python -m examples.monitoring

Needs: STATS

Prints:

    before: 4 ready, 0 dead
    health: up
    after: 0 ready, 1 dead
    this process: 4 sent, 3 handled, 1 failed, error rate 0.25
    the duration of handlers is known: True
    alert: 1 orders that nobody could bill
"""

from __future__ import annotations

import time

from brokerkit import Manager, QueueStatus, Reject, Topic

orders = Topic("monitoring.orders", int, groups=["billing"])
manager = Manager()


@manager.handler(orders)
def bill(number: int) -> None:
    if number == 13:
        raise Reject("nobody wants this number")


def alerts(status: QueueStatus) -> list[str]:
    found = list(status.health.problems)  # e.g. a handler that outlived its timeout
    if status.stats.dead:
        found.append(f"{status.stats.dead} orders that nobody could bill")
    if (status.stats.oldest_age or 0) > 600:
        found.append("the oldest order has waited for more than ten minutes")
    return found


def status_when_idle() -> QueueStatus:
    deadline = time.monotonic() + 60
    while True:
        status = manager.monitor.queue_status(orders, "billing")
        if (status.stats.ready == status.stats.unsettled == 0 and status.stats.dead) or time.monotonic() > deadline:
            return status
        time.sleep(0.05)


if __name__ == "__main__":
    with manager:
        manager.send_many(orders, [1, 2, 3, 13])
        stats = manager.monitor.stats(orders, "billing")
        print(f"before: {stats.ready} ready, {stats.dead} dead")
        health = manager.monitor.health()
        print("health:", health.status, *health.problems)

        manager.start()
        status = status_when_idle()
        print(f"after: {status.stats.ready} ready, {status.stats.dead} dead")
        metrics = status.metrics
        counted = ", ".join(f"{metrics.totals[name]} {name}" for name in ("sent", "handled", "failed"))
        print(f"this process: {counted}, error rate {metrics.consume_error_rate}")
        print("the duration of handlers is known:", metrics.latency("handle").p95 is not None)
        for text in alerts(status):
            print("alert:", text)
        manager.admin.discard(orders, "billing")  # so that a second run begins as the first one did
