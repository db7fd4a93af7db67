"""The programs of a RocketMQ: its jars from Maven in the user's cache, and a Java that runs them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from brokerkit.errors import BrokerUnavailable
from brokerkit.testing.services.service import Missing

__all__ = ["ROCKETMQ_VERSIONS", "RocketMQInstallation", "find_rocketmq"]

#: What the tests run on.  Maven Central has no complete server of 4.9.6, 4.9.8 and 5.5.1.
ROCKETMQ_VERSIONS = ("4.9.4", "4.9.7", "5.3.3", "5.5.0")

#: Where the jars are kept, a folder a version.
_CACHE = "BROKERKIT_ROCKETMQ_CACHE"

_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"

#: Seconds; a few on a good line.
_FETCH_TIMEOUT = 1800.0
_JAVA_TIMEOUT = 60.0

#: The first Java that knows the options of `RocketMQInstallation.run`.  17 is the one that was tried.
_OLDEST_JAVA = 11


@dataclass(frozen=True, slots=True)
class RocketMQInstallation:
    """The jars of one version, and the Java that runs them."""

    #: Such as "4.9.4".
    version: str
    #: Folder of the jars: NameServer, broker, Java client, and on 5.x the gRPC proxy.
    jars: str
    #: Path of the program.
    java: str

    @property
    def major(self) -> int:
        """First number of the version."""
        return int(self.version.partition(".")[0])

    @property
    def classpath(self) -> str:
        """What ``java -cp`` wants."""
        return f"{self.jars}/*"


def find_rocketmq(version: str = ROCKETMQ_VERSIONS[0], *, cache: Path | None = None) -> RocketMQInstallation | Missing:
    """Return a RocketMQ of a version, whose jars are fetched by Maven when they are not in the cache yet.

    That takes seconds and 30 MB (4.9.x) or 100 MB (5.x), is told on stderr, and is done once: other processes wait.
    `BrokerUnavailable` when Maven cannot fetch them.
    """
    if re.fullmatch(r"\d+\.\d+\.\d+", version) is None:
        return Missing("rocketmq", f"{version!r} is no version: say one like {', '.join(ROCKETMQ_VERSIONS)}")
    java = _find_java()
    if isinstance(java, Missing):
        return java
    folder = (cache or _cache()) / version
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.with_name(f"{version}.lock")):
            if not folder.exists():
                program = shutil.which("mvn")
                if program is None:
                    return Missing(
                        "rocketmq",
                        f"the jars of {version} are not in the cache and there is no mvn: apt-get install maven",
                    )
                _fetch(program, version, folder)
    return RocketMQInstallation(version, str(folder), java)


def _cache() -> Path:
    if chosen := os.environ.get(_CACHE):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "brokerkit", "rocketmq")


def _find_java() -> str | Missing:
    home = os.environ.get("JAVA_HOME")
    program = shutil.which("java", path=f"{home}/bin") if home else None
    program = program or shutil.which("java")
    if program is None:
        return Missing("rocketmq", "there is no Java: apt-get install openjdk-17-jre-headless")
    try:
        ended = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=_JAVA_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Missing("rocketmq", f"{program} does not work: {error}")
    found = re.search(r'version "(\d+)', ended.stderr)
    if found is None or int(found[1]) < _OLDEST_JAVA:
        said = ended.stderr.strip().partition("\n")[0]
        return Missing("rocketmq", f"{program} is no Java {_OLDEST_JAVA} or newer, it says: {said[:200]}")
    return program


def _fetch(program: str, version: str, folder: Path) -> None:
    _say(f"fetching the jars of RocketMQ {version} by Maven, once ...")
    # Complete or not there: a run that dies leaves only the other name.
    unfinished = folder.with_name(f"{version}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="brokerkit-maven-") as directory:
        pom = Path(directory, "pom.xml")
        pom.write_bytes(files(__package__).joinpath("rocketmq_pom.xml").read_bytes())
        command = [program, "-B", "-q", "-f", str(pom), f"-Drocketmq={version}", *(["-P", "proxy"] * (version >= "5"))]
        command += [_COPY, "-DincludeScope=runtime", f"-DoutputDirectory={unfinished}"]
        try:
            ended = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_FETCH_TIMEOUT
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BrokerUnavailable(f"Maven could not fetch RocketMQ {version}: {error}") from error
    if ended.returncode != 0 or not unfinished.exists():
        raise BrokerUnavailable(f"Maven could not fetch RocketMQ {version}: {_reason(ended.stdout + ended.stderr)}")
    unfinished.rename(folder)
    size = sum(jar.stat().st_size for jar in folder.iterdir())
    _say(f"RocketMQ {version} is in the cache, {size / 1e6:.0f} MB")


def _reason(said: str) -> str:
    """Return the first complaint of Maven without its advice, its colours and the addresses of its repositories."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", said)
    errors = [line.removeprefix("[ERROR] ") for line in plain.splitlines() if line.startswith("[ERROR] ")]
    text = errors[0] if errors else plain.strip()[-600:] or "it said nothing"
    return re.sub(r"\w+://\S+", "<repository>", text)[:600]


def _say(text: str) -> None:
    sys.stderr.write(f"brokers: {text}\n")
    sys.stderr.flush()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
