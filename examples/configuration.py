"""Configure by file, environment and arguments; the stronger source wins, key by key.

Arguments win over the environment, which wins over the file.  This program writes a brokerkit.yaml of its own into
a temporary directory and looks at what each source makes of it; nothing is connected.

    python -m examples.configuration

Prints:

    the file: 6 attempts, stop_timeout 30
    and for returns: 2 attempts
    the environment: 7 attempts, stop_timeout 30
    an argument: 7 attempts, stop_timeout 5
    configuration: unknown key 'retry.max_attemps' (brokerkit.yaml); did you mean 'max_attempts'?
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from brokerkit import ConfigurationError, Manager

FILE = """\
retry: {max_attempts: 6}
topics:
  returns:
    retry: {max_attempts: 2}
"""


def show(source: str, manager: Manager) -> None:
    settings = manager.settings
    print(f"{source}: {settings.retry.max_attempts} attempts, stop_timeout {settings.stop_timeout:g}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "brokerkit.yaml")
        file.write_text(FILE, encoding="utf-8")
        os.environ["BROKERKIT_CONFIG"] = str(file)  # without it: brokerkit.yaml in the working directory
        show("the file", Manager())
        returns = Manager().settings.topics["returns"].retry
        print(f"and for returns: {returns.max_attempts if returns else None} attempts")

        os.environ["BROKERKIT_RETRY__MAX_ATTEMPTS"] = "7"
        show("the environment", Manager())
        show("an argument", Manager(stop_timeout=5))

        file.write_text(FILE.replace("max_attempts: 6", "max_attemps: 6"), encoding="utf-8")
        try:
            show("a typing error", Manager())
        except ConfigurationError as error:
            print(str(error).replace(f"{folder}{os.sep}", ""))
