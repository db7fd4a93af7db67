from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from brokerkit.errors import BrokerError, ConfigurationError
from brokerkit.registry import GROUP, SCHEMES, Registry, backend_for_url, find_backend, known_backends
from brokerkit.spi import Backend, Capability, Connection, ConnectOptions


class Paper:
    """A backend that is installed nowhere."""

    name = "paper"
    schemes: tuple[str, ...] = ("paper", "post-it")
    capabilities: frozenset[Capability] = frozenset()

    async def connect(self, options: ConnectOptions) -> Connection:
        raise ConfigurationError("paper cannot connect")

    def map_error(self, exc: BaseException) -> BrokerError | None:
        return None


class Hollow:
    name = "hollow"


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group=GROUP)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Two entry points in modules of their own: `slow_plugin`, which works, and `broken_plugin`, which does not."""
    (tmp_path / "slow_plugin.py").write_text(
        "from brokerkit.spi import Capability\n"
        "class SlowBackend:\n"
        "    name, schemes, capabilities = 'slow', ('slow',), frozenset(Capability)\n"
        "    async def connect(self, options): ...\n"
        "    def map_error(self, exc): ...\n"
    )
    (tmp_path / "broken_plugin.py").write_text("import no_such_client_library\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "slow_plugin", raising=False)
    return Registry(
        [
            point("broken", "broken_plugin:Backend"),
            point("hollow", f"{__name__}:Hollow"),
            point("noclass", "slow_plugin:NoSuchBackend"),
            point("slow", "slow_plugin:SlowBackend"),
        ]
    )


def test_the_embedded_backend_is_always_known() -> None:
    assert "embedded" in known_backends()
    assert find_backend("embedded").name == "embedded"
    assert backend_for_url("memory://x").name == "embedded"
    assert backend_for_url("sqlite:///x.db").name == "embedded"


def test_the_schemes_that_are_written_down_are_those_of_the_installed_backends() -> None:
    for name in set(known_backends()) & set(SCHEMES.values()):
        assert set(find_backend(name).schemes) == {scheme for scheme, owner in SCHEMES.items() if owner == name}


def test_an_unknown_backend_is_refused_with_the_nearest_one_and_the_installed_ones() -> None:
    with pytest.raises(
        ConfigurationError, match=r"unknown backend 'embeded'; did you mean 'embedded'\?; installed: .*em"
    ):
        find_backend("embeded")


def test_a_backend_that_is_not_installed_says_what_to_install() -> None:
    with pytest.raises(ConfigurationError, match=r"Install it with: pip install 'brokerkit\[rocketmq\]'"):
        Registry([]).find("rocketmq")
    with pytest.raises(ConfigurationError, match=r"pip install 'brokerkit\[rabbitmq\]'"):
        Registry([]).for_url("amqps://user:secret@h")


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be a str, not int"):
        find_backend(3)  # type: ignore[arg-type]


def test_an_entry_point_is_imported_when_its_backend_is_asked_for(plugin: Registry) -> None:
    assert plugin.known() == ("broken", "hollow", "noclass", "slow")
    assert plugin.name_for_url("amqp://h") == "rabbitmq"
    assert "slow_plugin" not in sys.modules

    assert plugin.find("slow").name == "slow"
    assert "slow_plugin" in sys.modules


def test_a_scheme_of_a_plug_in_is_found_although_another_plug_in_is_broken(plugin: Registry) -> None:
    assert plugin.name_for_url("slow://h") == "slow"


def test_a_broken_plug_in_says_what_is_wrong_with_it(plugin: Registry) -> None:
    with pytest.raises(
        ConfigurationError, match=r"'broken' cannot be imported: No module named 'no_such_client"
    ) as error:
        plugin.find("broken")
    assert isinstance(error.value.__cause__, ImportError)
    with pytest.raises(ConfigurationError, match=r"'noclass' \(slow_plugin:NoSuchBackend\) cannot be made"):
        plugin.find("noclass")
    with pytest.raises(ConfigurationError, match="Hollow lacks schemes, capabilities, connect, map_error"):
        plugin.find("hollow")


def test_an_unknown_scheme_is_refused_with_the_nearest_one_and_without_the_password(plugin: Registry) -> None:
    with pytest.raises(ConfigurationError, match=r"slowly://; did you mean 'slow'\?") as error:
        plugin.for_url("slowly://user:geheim@h")
    assert "geheim" not in str(error.value)


@pytest.mark.parametrize("added", [Paper, Paper()])
def test_an_added_backend_belongs_to_one_registry_only(added: Backend) -> None:
    registry = Registry()
    registry.add("paper", added)

    assert isinstance(registry.find("paper"), Paper)
    assert isinstance(registry.for_url("post-it://desk"), Paper)
    assert "paper" in registry.known()
    assert "paper" not in Registry().known()


def test_an_added_backend_comes_before_an_installed_one() -> None:
    class Instead(Paper):
        schemes: tuple[str, ...] = ("memory",)

    registry = Registry()
    registry.add("embedded", Instead())

    assert isinstance(registry.for_url("memory://x"), Instead)
    assert isinstance(registry.find("embedded"), Instead)


def test_importing_the_settings_loads_no_backend_and_no_client_library() -> None:
    program = (
        "import sys, brokerkit, brokerkit.settings, brokerkit.registry\n"
        "brokerkit.registry.known_backends()\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in "
        "('brokerkit_rabbitmq', 'brokerkit_rocketmq', 'pika', 'yaml', 'dotenv', 'sqlite3', 'pydantic_settings') "
        "or name.startswith('brokerkit.embedded')))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"
