"""Take messages one by one, without a handler: for programs that have a loop of their own.

`consume` gives deliveries; each is settled once: `ack` done, `nack` again (counted, maybe later), `reject` dead
letter.  ``with delivery:`` acknowledges at the end of the block and gives back on an error.  `extend` keeps a
delivery longer than the broker would.  What is not settled when the consumer closes goes back.

    python -m examples.pull

Prints, in any order:

    good: attempt 1, ack
    bad: attempt 1, reject
    busy: attempt 1, nack
    busy: attempt 2, ack
    dead letters: bad (not a task)
"""

from __future__ import annotations

from brokerkit import BlockingDelivery, Manager, Topic

tasks = Topic("pull.tasks", str, groups=["robot"])
manager = Manager()


def work(delivery: BlockingDelivery) -> None:
    task = delivery.payload(str)
    if task == "bad":
        delivery.reject("not a task")
    elif task == "busy" and delivery.attempt == 1:
        delivery.nack(delay=0.5)
    else:
        with delivery:  # or delivery.ack() when the work is done
            pass
    print(f"{task}: attempt {delivery.attempt}, {delivery.verb}")


if __name__ == "__main__":
    with manager:
        manager.send_many(tasks, ["good", "bad", "busy"])  # before anybody consumes: they wait
        with manager.consume(tasks, prefetch=1) as deliveries:
            open_tasks = 3
            while open_tasks:
                delivery = deliveries.receive(timeout=60)  # `for delivery in deliveries:` waits for ever
                if delivery is None:
                    break
                work(delivery)
                open_tasks -= delivery.verb != "nack"
        letters = manager.admin.dead_letters(tasks, "robot")
        print("dead letters:", *(f"{letter.message.payload(str)} ({letter.error})" for letter in letters))
        manager.admin.discard(tasks, "robot")
