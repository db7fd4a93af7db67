from __future__ import annotations

import subprocess
import sys

import pytest

import brokerkit.testing


@pytest.mark.parametrize("name", sorted(brokerkit.testing.__all__))
def test_every_exported_name_loads(name: str) -> None:
    assert getattr(brokerkit.testing, name).__name__ == name


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_tool"):
        _ = brokerkit.testing.no_such_tool


def test_importing_the_package_loads_none_of_the_tools() -> None:
    # Everybody's pytest imports it through the plugin.
    script = "import sys, brokerkit.testing; print([m for m in sys.modules if m.startswith('brokerkit.testing.')])"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"
