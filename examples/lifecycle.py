"""Start, pause, drain and stop a worker.

`pause` holds messages back in this process, `resume` lets them come.  `stop` drains: handlers that run may finish
within its timeout; what was not started, or did not finish, goes back to its group and comes again.  `run` is what a
worker program calls: it starts, waits for SIGTERM or Ctrl-C, drains and closes.  Here the last message sends the
SIGTERM that a supervisor would send, in the middle of its own handling.

    python -m examples.lifecycle

Prints:

    paused: 0 handled
    resumed: first is handled
    stop while second runs: all finished is False
    started again: second is handled
    SIGTERM while third runs
    third is handled
    run() has returned
"""

from __future__ import annotations

import os
import queue
import signal
import threading

from brokerkit import Manager, Topic

tasks = Topic("lifecycle.tasks", str, groups=["workers"])
manager = Manager()
second_runs = threading.Event()
go_on = threading.Event()
handled: queue.Queue[str] = queue.Queue()


@manager.handler(tasks)
def work(task: str) -> None:
    if task == "second" and not go_on.is_set():
        second_runs.set()
        go_on.wait(timeout=60)  # longer than `stop` below is willing to wait
        return
    if task == "third":
        print("SIGTERM while third runs")
        os.kill(os.getpid(), signal.SIGTERM)
        print("third is handled")
    handled.put(f"{task} is handled")


if __name__ == "__main__":
    manager.start()
    manager.pause(tasks)
    manager.send(tasks, "first")
    print(f"paused: {handled.qsize()} handled")
    manager.resume(tasks)
    print("resumed:", handled.get(timeout=60))

    manager.send(tasks, "second")
    second_runs.wait(timeout=60)
    print("stop while second runs: all finished is", manager.stop(timeout=0.1))
    go_on.set()  # its thread ends now; its message went back before, so it comes again
    manager.start()
    print("started again:", handled.get(timeout=60))

    manager.stop()
    manager.send(tasks, "third")
    manager.run()  # handles signals, starts, waits for one, drains and closes
    print("run() has returned")
