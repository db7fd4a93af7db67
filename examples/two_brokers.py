"""Work with two brokers in one process: orders on one, an audit trail on another.

The configuration names the second one below ``managers:``; `get_manager("audit")` is that manager, wherever it is
called.  It inherits nothing from the first one.  In brokerkit.yaml:

    managers:
      audit: {url: "sqlite:///audit.db"}

and the same as an environment variable, as this program sets it where you have not.

    python -m examples.two_brokers

Prints:

    default is on another broker than audit: True
    audit: order 1 was billed
    audit: order 2 was billed
    orders left on the broker of the audit: 0
"""

from __future__ import annotations

import os
import queue

from brokerkit import Topic, TopicNotFound, get_manager

orders = Topic("two.orders", int, groups=["billing"])
trail = Topic("two.trail", str, groups=["auditors"])
seen: queue.Queue[str] = queue.Queue()


def bill(number: int) -> None:
    get_manager("audit").send(trail, f"order {number} was billed")


async def audit(line: str) -> None:
    seen.put(line)


def main() -> None:
    os.environ.setdefault("BROKERKIT_MANAGERS__AUDIT__URL", "sqlite:///audit.db")
    shop, auditing = get_manager(), get_manager("audit")
    shop.add_handler(orders, bill)
    auditing.add_handler(trail, audit)
    with shop, auditing:
        print("default is on another broker than audit:", shop.settings.url != auditing.settings.url)
        shop.start()
        auditing.start()
        shop.send_many(orders, [1, 2])
        for line in sorted(seen.get(timeout=60) for _ in range(2)):
            print("audit:", line)
        try:
            left = auditing.monitor.lag(orders, "billing").ready
        except TopicNotFound:
            left = 0  # the topic does not even exist there
        print("orders left on the broker of the audit:", left)


if __name__ == "__main__":
    main()
