"""``python -m soak``: messages over a broker under faults; exit 0 when none was lost and none repeated wrongly."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from brokerkit.testing.services.service import Missing
from soak.rabbitmq import RabbitMQStage
from soak.rocketmq import RocketMQStage
from soak.run import Plan, soak
from soak.stage import Stage

#: Sending may take so many times as long as was planned, and so many seconds more.
_LIMIT, _EXTRA = 2.0, 60.0

_STAGES: dict[str, Callable[[], Stage | Missing]] = {"rabbitmq": RabbitMQStage.make, "rocketmq": RocketMQStage.make}


def main() -> int:
    """Run with the arguments of the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--backend", choices=sorted(_STAGES), default="rabbitmq", help="which (default rabbitmq)")
    parser.add_argument("--messages", type=int, default=1_000_000, help="messages to confirm (default 1,000,000)")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long sending them takes (default 10)")
    parser.add_argument("--rate", type=float, help="messages a second at most (default: messages by minutes)")
    parser.add_argument("--seed", type=int, help="draws the faults; printed, to draw the same ones again")
    parser.add_argument(
        "--keep", type=Path, help="an empty or new folder for the journals; kept (default: only if bad)"
    )
    arguments = parser.parse_args()
    if arguments.messages < 1 or arguments.minutes <= 0 or (arguments.rate is not None and arguments.rate <= 0):
        parser.error("--messages, --minutes and --rate must be more than 0")
    stage = _STAGES[arguments.backend]()
    if isinstance(stage, Missing):
        print(stage, file=sys.stderr)
        return 2
    folder = arguments.keep
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="brokerkit-soak-"))
    else:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            parser.error(f"{folder} is not empty: old journals would be counted")
    seconds = 60 * arguments.minutes
    plan = Plan(
        messages=arguments.messages,
        rate=arguments.rate or arguments.messages / seconds,
        limit=_LIMIT * seconds + _EXTRA,
        seed=secrets.randbelow(1 << 32) if arguments.seed is None else arguments.seed,
        folder=folder.resolve(),
        stage=stage,
    )
    print(f"seed {plan.seed}, {plan.messages:,} messages, {plan.rate:,.0f} a second, {stage.label}")
    code = asyncio.run(soak(plan))
    if code == 0 and arguments.keep is None:
        shutil.rmtree(folder)
    else:
        print(f"journals, logs and the list of faults: {folder}")
    return code


if __name__ == "__main__":
    sys.exit(main())
