"""docker/: without an engine, what the image copies, installs and runs is there and works in this environment."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from brokerkit import Manager
from brokerkit.settings import Settings
from brokerkit.testing.deadlines import eventually_sync
from brokerkit.testing.services.rabbitmq import RabbitMQNode, RabbitMQOptions
from brokerkit.testing.services.rocketmq import RocketMQOptions, RocketMQServer, registered_brokers
from brokerkit.url import BrokerUrl
from brokerkit_rocketmq.backend import RocketMQBackend
from examples.export_service.tasks import read_tasks
from tests.cli.conftest import Shell
from tests.rabbitmq.nodes import installation_or_skip
from tests.rocketmq.servers import installation_or_skip as rocketmq_installation_or_skip
from tests.test_deploying import LONGEST_STOP, is_taken

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"


def instructions(name: str) -> list[str]:
    """Return the arguments of every instruction of that name."""
    text = re.sub(r"\\\n", " ", (DOCKER / "Dockerfile").read_text(encoding="utf-8"))
    return [" ".join(line.split()[1:]) for line in text.splitlines() if line.startswith(f"{name} ")]


def copied() -> list[str]:
    """Return the paths of the repository that are copied into the image."""
    found = []
    for line in instructions("COPY"):
        if not line.startswith("--from"):
            found += shlex.split(line)[:-1]
    return found


def image_environment() -> dict[str, str]:
    (line,) = instructions("ENV")
    return dict(part.split("=", 1) for part in shlex.split(line))


def entrypoint() -> list[str]:
    (line,) = instructions("ENTRYPOINT")
    words: list[str] = json.loads(line)
    return words


def composition() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
    return loaded


def applications() -> dict[str, Any]:
    """Return the services that run our image."""
    return {name: one for name, one in composition()["services"].items() if "build" in one}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    made = Shell(tmp_path)
    made.environment["PYTHONPATH"] = str(ROOT)
    made.environment["EXPORT_FOLDER"] = str(tmp_path / "exports")
    return made


def test_everything_that_is_copied_exists_and_is_not_ignored() -> None:
    lines = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}

    assert "*" in lines
    assert [path for path in copied() if not (ROOT / path).exists()] == []
    assert set(copied()) == allowed


def test_no_environment_secret_or_broker_file_gets_into_the_image() -> None:
    lines = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.removeprefix("**/") for line in lines if line.startswith("**/")]
    for name in (".env", "work.db", "work.db-wal", "__pycache__"):
        assert any(fnmatch(name, pattern) for pattern in patterns), name


def test_the_image_has_every_package_and_what_the_build_of_the_wheel_reads() -> None:
    packages = project()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert [path for path in [*packages, "README.md", "LICENSE", "examples"] if path not in copied()] == []


def test_the_image_installs_extras_and_groups_that_exist() -> None:
    run = " ".join(instructions("RUN"))
    extras = {name for names in re.findall(r'"\.\[([\w,]+)\]"', run) for name in names.split(",")}
    groups = set(re.findall(r"--group (\w+)", run))

    assert {"cli", "rabbitmq", "rocketmq"} <= extras <= set(project()["project"]["optional-dependencies"])
    assert "demo" in groups <= set(project()["dependency-groups"])


def test_the_image_has_one_pinned_python_that_the_project_supports() -> None:
    versions = {version for line in instructions("FROM") for version in re.findall(r"^python:(3\.\d+)-slim", line)}
    assert len(versions) == 1 and len(instructions("FROM")) == 2
    assert f"Programming Language :: Python :: {versions.pop()}" in project()["project"]["classifiers"]


def test_the_image_runs_as_a_user_who_owns_the_directory_of_the_broker_file() -> None:
    run = " ".join(instructions("RUN"))
    (user,) = instructions("USER")
    directory = str(Path(image_environment()["BROKERKIT_URL"].removeprefix("sqlite:///")).parent)

    assert user != "root" and f"useradd --uid 10001 --no-create-home {user}" in run
    assert f"install -d -o {user} -g {user} {directory}" in run
    assert image_environment()["EXPORT_FOLDER"].startswith(f"{directory}/")


def test_the_command_of_the_image_is_one_that_exists(shell: Shell) -> None:
    (line,) = instructions("CMD")
    assert entrypoint() == ["tini", "--", "brokerkit"]
    assert "tini" in " ".join(instructions("RUN"))
    assert is_taken(shell, json.loads(line))


def test_the_health_check_of_the_image_works(shell: Shell) -> None:
    (line,) = instructions("HEALTHCHECK")
    program, *arguments = json.loads(line.partition(" CMD ")[2])

    assert program == "brokerkit"
    assert shell.run(*arguments).returncode == 0
    gone = shell.run(*arguments, BROKERKIT_URL=f"sqlite:///{shell.folder}/missing/work.db")
    assert gone.returncode == 1


def test_the_services_run_commands_that_exist(shell: Shell) -> None:
    for name, service in applications().items():
        if "entrypoint" not in service:
            assert is_taken(shell, service["command"]), name
        else:
            file = service["entrypoint"][-1]
            assert file in copied() and (ROOT / file).is_file(), name


def test_the_services_share_the_broker_and_its_volume() -> None:
    directory = str(Path(image_environment()["BROKERKIT_URL"].removeprefix("sqlite:///")).parent)

    for service in applications().values():
        assert service["volumes"] == [f"data:{directory}"]
        assert image_environment()["BROKERKIT_URL"] in service["environment"]["BROKERKIT_URL"]
        assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).resolve().is_file()
    assert set(composition()["volumes"]) == {"data", "rabbitmq", "rocketmq"}


def test_the_engine_waits_for_the_drain_of_the_worker() -> None:
    patience = composition()["services"]["worker"]["stop_grace_period"]
    assert float(patience.removesuffix("s")) > LONGEST_STOP


def test_what_the_sender_submits_waits_for_the_worker(shell: Shell) -> None:
    sender = composition()["services"]["sender"]["entrypoint"]
    file = sender[-1]
    assert sender == ["tini", "--", "python", file]

    result = subprocess.run(
        [sys.executable, str(ROOT / file)],
        cwd=shell.folder,
        env=shell.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert result.stdout == f"submitted {len(read_tasks())} tasks\n", result.stderr
    assert shell.json("lag", "export_tasks", "export_consumer_group")["ready"] == len(read_tasks())


def test_the_sender_says_in_a_line_what_is_wrong(shell: Shell) -> None:
    result = subprocess.run(
        [sys.executable, str(DOCKER / "submit.py")],
        cwd=shell.folder,
        env={**shell.environment, "BROKERKIT_URL": f"sqlite:///{shell.folder}/missing/work.db"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1 and "does not exist" in result.stderr


def test_the_worker_of_the_image_can_load_the_application(shell: Shell) -> None:
    (line,) = instructions("CMD")
    target = json.loads(line)[1]
    assert all(target == one["command"][1] for one in applications().values() if one["command"])

    found = shell.run("doctor", target)
    assert found.returncode == 0, found.stdout + found.stderr


# --- the RabbitMQ of the services -------------------------------------------------------------------------------


def test_the_rabbitmq_of_the_services_is_there_only_where_it_is_asked_for() -> None:
    services = composition()["services"]
    rabbitmq = services["rabbitmq"]

    assert rabbitmq["profiles"] == ["rabbitmq"]
    assert services["worker"]["depends_on"]["rabbitmq"] == {"condition": "service_healthy", "required": False}
    assert all(port.startswith("127.0.0.1:") for port in rabbitmq["ports"])


def test_the_url_that_the_compose_file_shows_leads_to_its_rabbitmq() -> None:
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    (shown,) = re.findall(r"BROKERKIT_URL=(amqp:\S+)", text)
    url, rabbitmq = BrokerUrl.parse(shown), composition()["services"]["rabbitmq"]
    login = rabbitmq["environment"]

    assert (url.hosts, url.path) == ((("rabbitmq", None),), "")
    assert url.user == login["RABBITMQ_DEFAULT_USER"]
    assert login["RABBITMQ_DEFAULT_PASS"] == f"${{RABBITMQ_PASSWORD:-{url.password}}}"


def test_the_rabbitmq_of_the_services_starts_with_our_configuration_and_answers_its_health_check() -> None:
    rabbitmq = composition()["services"]["rabbitmq"]
    (mounted,) = [volume for volume in rabbitmq["volumes"] if volume.startswith("./")]
    lines = (DOCKER / mounted.partition(":")[0]).read_text(encoding="utf-8").splitlines()
    entries = dict(line.split(" = ", 1) for line in lines if not line.startswith("#"))
    program, *arguments = rabbitmq["healthcheck"]["test"][1:]

    with RabbitMQNode(RabbitMQOptions(config=entries), installation=installation_or_skip()) as node:
        variables = {
            "HOME": node.address.home,
            "ERL_EPMD_PORT": str(node.address.mapper_port),
            "RABBITMQ_NODENAME": node.address.node,
        }
        check = node.installation.run([node.installation.program(program), *arguments], variables, node.directory)
        result = subprocess.run(check, capture_output=True, text=True, timeout=120, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        node.stop_app()
        result = subprocess.run(check, capture_output=True, text=True, timeout=120, check=False)
        assert result.returncode != 0, result.stdout


# --- the RocketMQ of the services -------------------------------------------------------------------------------


def rocketmq_services() -> dict[str, Any]:
    return {name: one for name, one in composition()["services"].items() if name.startswith("rocketmq")}


def broker_conf() -> dict[str, str]:
    lines = (DOCKER / "rocketmq-broker.conf").read_text(encoding="utf-8").splitlines()
    return dict(line.split(" = ", 1) for line in lines if not line.startswith("#"))


def test_the_rocketmq_of_the_services_is_there_only_where_it_is_asked_for() -> None:
    services = rocketmq_services()

    assert {tuple(one["profiles"]) for one in services.values()} == {("rocketmq",)}
    worker = composition()["services"]["worker"]["depends_on"]
    assert worker["rocketmq"] == {"condition": "service_healthy", "required": False}
    ports = [port for one in services.values() for port in one.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
    assert {one["image"] for one in services.values()} == {"apache/rocketmq:4.9.4"}


def test_clients_are_told_an_address_of_the_rocketmq_that_they_reach() -> None:
    assert broker_conf()["brokerIP1"] in rocketmq_services()
    (mounted,) = [volume for volume in rocketmq_services()["rocketmq"]["volumes"] if volume.startswith("./")]
    source, target, _ = mounted.split(":")
    assert (DOCKER / source).is_file() and target in rocketmq_services()["rocketmq"]["command"]


def test_the_urls_that_lead_to_the_rocketmq_name_its_name_server() -> None:
    (shown,) = re.findall(r"BROKERKIT_URL=(rocketmq:\S+)", (DOCKER / "compose.yaml").read_text(encoding="utf-8"))
    name_servers = {name for name, one in rocketmq_services().items() if "mqnamesrv" in one["command"]}

    assert {f"{host}:{port}" for host, port in BrokerUrl.parse(shown).hosts} == {
        f"{name}:9876" for name in name_servers
    }
    assert rocketmq_services()["rocketmq"]["environment"]["NAMESRV_ADDR"] in {f"{name}:9876" for name in name_servers}
    (outside,) = re.findall(r"rocketmq://127\S+", (DOCKER / "rocketmq-broker.conf").read_text(encoding="utf-8"))
    assert BrokerUrl.parse(outside).query["address_map"] == f"{broker_conf()['brokerIP1']}=127.0.0.1"


def test_the_rocketmq_of_the_services_takes_a_message_from_this_machine_with_our_configuration() -> None:
    settings = broker_conf()
    # Here this name leads nowhere, as the name of a service does outside its network.
    name = settings.pop("brokerIP1")
    with RocketMQServer(RocketMQOptions(settings=settings), installation=rocketmq_installation_or_skip()) as server:
        # Now and not at the start: the server waits until its broker is registered under an address that it knows.
        server.configure({"brokerIP1": name})
        (address,) = {broker.address for broker in server.address.brokers}
        told = f"{name}:{address.rpartition(':')[2]}"
        eventually_sync(
            lambda: set(registered_brokers(server.address.name_servers[0]).values()) == {told},
            within=120,
            what=f"the registration of {told}",
        )
        url = f"{server.url}?address_map={name}=127.0.0.1"
        with Manager(url, backend=RocketMQBackend(), settings=Settings()) as manager:
            manager.admin.declare("orders", "billing", start="earliest")
            manager.send("orders", "paid")
            with manager.consume("orders", group="billing") as deliveries:
                assert next(iter(deliveries)).payload(str) == "paid"


def test_the_health_checks_of_the_rocketmq_see_whether_it_listens() -> None:
    for name, port in (("rocketmq-names", 9876), ("rocketmq", 10911)):
        command = rocketmq_services()[name]["healthcheck"]["test"][1:]
        assert f"/127.0.0.1/{port}" in command[-1]
        with socket.create_server(("127.0.0.1", 0)) as server:
            here = command[-1].replace(str(port), str(server.getsockname()[1]))
            assert subprocess.run([*command[:-1], here], timeout=60, check=False).returncode == 0
        assert subprocess.run([*command[:-1], here], capture_output=True, timeout=60, check=False).returncode != 0
