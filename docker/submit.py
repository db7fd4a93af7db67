"""The sender of the composition: submits the tasks of the demo, prints how many the broker has taken."""

from __future__ import annotations

import sys

from brokerkit import BrokerError, get_manager
from examples.export_service.tasks import batches, read_tasks

__all__ = ["main"]


def main() -> int:
    """Return the exit code: 0, or 1 when the broker did not take all."""
    sent = 0
    try:
        with get_manager() as manager:
            for batch in batches(read_tasks()):
                sent += len(manager.send_batch_export_tasks(batch.template_id, batch.data, batch.output_format))
    except BrokerError as error:
        sys.stderr.write(f"after {sent} tasks: {error}\n")
        return 1
    sys.stdout.write(f"submitted {sent} tasks\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
