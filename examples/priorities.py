"""Deliver the urgent ones first, and ask the broker what it can do.

Every broker carries the priority of a message, 0 to 9; only one with STRICT_PRIORITY orders by it.  A program that
depends on such a promise can look for it: a capability that is missing where it must be there raises
`CapabilityNotSupported` before anything is sent.

    python -m examples.priorities

Needs: STRICT_PRIORITY

Prints:

    strict priorities: yes
    priority 9: fire
    priority 5: leaking tap
    priority 0: new door
    priority 0: fresh paint
"""

from __future__ import annotations

from brokerkit import Capability, Manager, Topic

repairs = Topic("priorities.repairs", str, groups=["janitor"])

if __name__ == "__main__":
    with Manager() as manager:
        manager.admin.declare(repairs)  # the first send would do it too
        strict = Capability.STRICT_PRIORITY in manager.capabilities(repairs)
        print("strict priorities:", "yes" if strict else "no: they come as this broker has them")
        for repair, priority in (("new door", 0), ("leaking tap", 5), ("fresh paint", 0), ("fire", 9)):
            manager.send(repairs, repair, priority=priority)

        # One at a time: what was prefetched already is not overtaken any more.
        with manager.consume(repairs, prefetch=1) as deliveries:
            for _ in range(4):
                delivery = deliveries.receive(timeout=60)
                if delivery is None:
                    break
                with delivery:
                    print(f"priority {delivery.message.priority}: {delivery.payload(str)}")
