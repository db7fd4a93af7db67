"""Finding and controlling brokers, with Python's own HTTP server as the broker."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from brokerkit.errors import BrokerUnavailable, ConfigurationError
from brokerkit.testing.deadlines import eventually_sync
from brokerkit.testing.services import (
    Controllable,
    ExternalService,
    Missing,
    PrivateNode,
    Service,
    docker_missing,
    find_service,
    free_ports,
    is_required,
    service_or_skip,
)

LONG = 60.0


class HttpNode(PrivateNode):
    """Serves its directory."""

    name = "http"

    def prepare(self) -> None:
        (self.directory / "page").write_text("hello")

    def command(self) -> Sequence[str]:
        return [sys.executable, "-u", "-m", "http.server", str(self.port), "--bind", self.host]

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/page"


class ShellNode(PrivateNode):
    """Runs a line of shell that never listens."""

    name = "shell"
    start_timeout = 0.3
    script = ""

    def command(self) -> Sequence[str]:
        return ["/bin/sh", "-c", self.script]

    @property
    def url(self) -> str:
        return "shell://"


@pytest.fixture
def node() -> Iterator[HttpNode]:
    with HttpNode() as node:
        yield node


def get(node: HttpNode) -> bytes:
    with urllib.request.urlopen(node.url, timeout=LONG) as answer:
        body: bytes = answer.read()
        return body


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


# --- the node -------------------------------------------------------------------------------------------------


def test_a_started_node_answers(node: HttpNode) -> None:
    assert get(node) == b"hello"
    assert isinstance(node, Controllable)


def test_a_killed_node_refuses_connections_and_comes_back_at_its_address(node: HttpNode) -> None:
    url = node.url
    node.kill()
    assert not node.alive
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((node.host, node.port), timeout=LONG)
    node.start()
    assert node.url == url
    assert get(node) == b"hello"


def test_restart_keeps_the_data(node: HttpNode) -> None:
    (node.directory / "stored").write_text("kept")
    node.restart()
    assert (node.directory / "stored").read_text() == "kept"
    assert get(node) == b"hello"


def test_a_suspended_node_accepts_and_stays_silent_until_it_goes_on(node: HttpNode) -> None:
    node.suspend()
    with socket.create_connection((node.host, node.port), timeout=LONG) as client:
        client.sendall(b"GET /page HTTP/1.0\r\n\r\n")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        node.resume()
        client.settimeout(LONG)
        assert client.recv(100).startswith(b"HTTP/1.0 200")


def test_a_suspended_node_can_be_stopped(node: HttpNode) -> None:
    node.suspend()
    node.stop()
    assert not node.alive


def test_a_crash_is_noticed_and_start_cleans_up_after_it(node: HttpNode) -> None:
    with pytest.raises(RuntimeError, match="runs already"):
        node.start()
    assert node._process is not None
    os.kill(node._process.pid, 9)
    eventually_sync(lambda: not node.alive, LONG, "the crash to be seen")
    node.start()
    assert get(node) == b"hello"


def test_close_deletes_the_directory_and_ends_the_node() -> None:
    node = HttpNode()
    node.start()
    node.close()
    node.close()
    assert not node.directory.exists()
    assert not node.alive
    with pytest.raises(RuntimeError, match="closed"):
        node.start()


def shell(script: str) -> ShellNode:
    node = ShellNode()
    node.script = script
    return node


def test_a_node_that_ends_while_it_starts_shows_its_exit_code_and_log() -> None:
    with (
        pytest.raises(BrokerUnavailable, match=r"(?s)ended with 7 while it started.*no license"),
        shell("echo no license >&2; exit 7"),
    ):
        pass


def test_a_node_that_is_never_ready_is_killed_and_shows_why() -> None:
    node = shell("echo waiting for nothing; sleep 600")
    with pytest.raises(BrokerUnavailable, match=r"(?s)not ready within 0\.3 s.*refused.*waiting for nothing"):
        node.start()
    assert not node.alive
    node.close()


def test_a_command_that_does_not_exist_is_unavailable() -> None:
    class Nowhere(ShellNode):
        def command(self) -> Sequence[str]:
            return ["/no/such/binary"]

    with pytest.raises(BrokerUnavailable, match="cannot be started"), Nowhere():
        pass


class Stubborn(ShellNode):
    stop_timeout = 0.3
    script = "trap '' TERM; echo staying; while :; do sleep 1; done"

    def probe(self) -> None:
        if "staying" not in self.log.read_text():
            raise OSError("not yet")


def test_a_node_that_does_not_stop_is_killed_with_all_its_processes() -> None:
    with Stubborn() as node, pytest.raises(BrokerUnavailable, match=r"(?s)did not stop within 0\.3 s.*staying"):
        node.stop()
    assert not node.alive


class Parent(ShellNode):
    script = 'sleep 600 & echo "$!" > child; wait'

    def probe(self) -> None:
        if not (self.directory / "child").read_text().endswith("\n"):
            raise OSError("not yet")


def test_kill_reaches_the_processes_below_the_first_one() -> None:
    with Parent() as node:
        child = int((node.directory / "child").read_text())
        assert not is_gone(child)
        node.kill()
        eventually_sync(lambda: is_gone(child), LONG, "the child of the node to be gone")


_TEST_THAT_IS_KILLED = """
import sys, time
sys.path[:] = %r
from test_services import HttpNode
node = HttpNode()
node.start()
if sys.argv[1] == "suspended":
    node.suspend()
print(node._process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("state", ["running", "suspended"])
def test_no_node_outlives_a_test_run_that_is_killed(state: str, tmp_path: Path) -> None:
    path = [os.path.dirname(__file__), *sys.path]
    run = subprocess.Popen(
        [sys.executable, "-c", _TEST_THAT_IS_KILLED % (path,), state],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert run.stdout is not None
    with run.stdout:
        pid = int(run.stdout.readline())
    assert not is_gone(pid)
    run.kill()
    run.wait()
    eventually_sync(lambda: is_gone(pid), LONG, f"the {state} node of a killed test to be gone")


# --- ports ----------------------------------------------------------------------------------------------------


def test_free_ports_are_different_and_free() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_consecutive_ports_are_a_row() -> None:
    ports = free_ports(4, consecutive=True)
    assert ports == list(range(ports[0], ports[0] + 4))


# --- finding --------------------------------------------------------------------------------------------------


@dataclass
class Provider:
    """A provider whose steps are given; it notes which were taken."""

    name: str = "acme"
    on_environment: Callable[[str], Service | Missing] = field(default=lambda url: ExternalService("acme", url))
    on_local: Callable[[], Service | Missing] = field(default=lambda: Missing("acme", "no acme-server on the PATH"))
    taken: list[str] = field(default_factory=list)

    def from_environment(self, url: str) -> Service | Missing:
        self.taken.append("environment")
        return self.on_environment(url)

    def local(self) -> Service | Missing:
        self.taken.append("local")
        return self.on_local()

    def docker(self) -> Service | Missing:
        self.taken.append("docker")
        return Missing("acme", "no image for this machine")


def find(provider: Provider, environ: Mapping[str, str]) -> Service | Missing:
    return find_service("acme", providers=[provider], environ=environ)


def test_an_address_in_the_environment_wins_over_everything() -> None:
    provider = Provider()
    found = find(provider, {"BROKERKIT_TEST_ACME_URL": "acme://me:secret@host"})
    assert found == ExternalService("acme", "acme://me:secret@host")
    assert provider.taken == ["environment"]
    assert "secret" not in repr(found)


def test_a_chosen_address_that_does_not_answer_is_not_replaced_by_another_broker() -> None:
    provider = Provider(on_environment=lambda url: Missing("acme", "nobody answers"))
    found = find(provider, {"BROKERKIT_TEST_ACME_URL": "acme://host"})
    assert isinstance(found, Missing)
    assert found.reason == "BROKERKIT_TEST_ACME_URL: nobody answers"
    assert provider.taken == ["environment"]


def test_a_local_node_is_used_where_no_address_is_given() -> None:
    node = HttpNode()
    assert find(Provider(on_local=lambda: node), {}) is node
    node.close()


def test_a_missing_broker_says_what_was_tried() -> None:
    found = find(Provider(), {})
    assert isinstance(found, Missing)
    assert not found.required
    assert str(found).startswith(
        "no acme: BROKERKIT_TEST_ACME_URL is not set; local: no acme-server on the PATH; docker: "
    )


def test_a_local_node_that_fails_is_named_in_the_reason() -> None:
    def fail() -> Service:
        raise BrokerUnavailable("it fell over its own config")

    found = find(Provider(on_local=fail), {})
    assert isinstance(found, Missing)
    assert "local: it fell over its own config" in found.reason


def test_docker_is_asked_only_where_it_answers() -> None:
    provider = Provider()
    found = find(provider, {})
    assert isinstance(found, Missing)
    missing = docker_missing()
    if missing is None:
        assert provider.taken == ["local", "docker"]
    else:
        assert provider.taken == ["local"]
        assert found.reason.endswith(f"docker: {missing.reason}")


def test_an_unknown_service_names_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="'acne': known are acme"):
        find_service("acne", providers=[Provider()], environ={})


@pytest.mark.parametrize(
    ("value", "required"),
    [("", False), ("acme", True), ("other, ACME", True), ("acmes", False), (",", False)],
)
def test_brokerkit_require_lists_what_must_be_there(value: str, required: bool) -> None:
    assert is_required("acme", {"BROKERKIT_REQUIRE": value}) is required
    found = find(Provider(), {"BROKERKIT_REQUIRE": value})
    assert isinstance(found, Missing)
    assert found.required is required


def test_a_missing_service_skips_and_a_required_one_fails() -> None:
    with pytest.raises(pytest.skip.Exception, match="no acme-server on the PATH"):
        service_or_skip("acme", providers=[Provider()], environ={})
    with pytest.raises(pytest.fail.Exception, match="BROKERKIT_REQUIRE asks for it"):
        service_or_skip("acme", providers=[Provider()], environ={"BROKERKIT_REQUIRE": "acme"})
    service = service_or_skip("acme", providers=[Provider()], environ={"BROKERKIT_TEST_ACME_URL": "acme://host"})
    assert service.url == "acme://host"
