"""The rules of the architecture, proven on the source itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "brokerkit"

#: What a backend may import of brokerkit: the contract, and nothing of the policy above it.
BACKEND_MAY_IMPORT = ("brokerkit.spi", "brokerkit.errors")
#: What has files of SQLite shares this with the idempotency store: a fork concerns all of them together.
EMBEDDED_MAY_IMPORT = (*BACKEND_MAY_IMPORT, "brokerkit.sqlite_forks")
VAGUE = {"util", "utils", "common", "helper", "helpers", "misc", "base"}
#: Statements that may stand at the top of a module: they define, they do not do.
DEFINITIONS = (
    ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Assign, ast.AnnAssign,
    ast.AugAssign, ast.If, ast.Try,
)  # fmt: skip


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def backends() -> list[Path]:
    return [CORE / "embedded", *(path for path in sorted(ROOT.glob("brokerkit_*")) if path.is_dir())]


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_the_core_imports_no_backend_package() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(CORE)
        for line, name in imports(path)
        if name.split(".")[0].startswith("brokerkit_")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("backend", backends(), ids=lambda path: path.name)
def test_a_backend_imports_only_the_contract(backend: Path) -> None:
    own = ".".join(backend.relative_to(ROOT).parts)
    may = EMBEDDED_MAY_IMPORT if own == "brokerkit.embedded" else BACKEND_MAY_IMPORT
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(backend)
        for line, name in imports(path)
        if within(name, "brokerkit")
        and not within(name, own)
        and name != "brokerkit"
        and not any(within(name, allowed) for allowed in may)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_protocol_of_rocketmq_needs_nothing_of_brokerkit() -> None:
    remoting = ROOT / "brokerkit_rocketmq" / "remoting"
    found = {name for path in sources(remoting) for _, name in imports(path) if name.startswith("brokerkit")}
    assert [name for name in found if not within(name, "brokerkit_rocketmq.remoting")] == []
    assert [name for _, name in imports(remoting.parent / "__init__.py") if name != "__future__"] == []


def test_the_contract_imports_nothing_of_the_policy() -> None:
    allowed = {"brokerkit.clock", "brokerkit.errors", "brokerkit.sections", "brokerkit.spi_data", "brokerkit.url"}
    wrong = [
        name
        for module in ("spi.py", "spi_data.py")
        for _, name in imports(CORE / module)
        if within(name, "brokerkit") and not any(within(name, module) for module in allowed)
    ]
    assert not wrong


def test_shipped_code_does_not_import_the_tests_or_the_suite() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(CORE)
        if not path.is_relative_to(CORE / "testing") and not path.is_relative_to(CORE / "cli")
        for line, name in imports(path)
        if within(name, "brokerkit.testing") or within(name, "tests")
    ]
    assert not wrong, "\n".join(wrong)


def test_files_are_short_and_say_what_they_hold() -> None:
    long = [f"{path.relative_to(ROOT)}: {count}" for path in sources(CORE) if (count := lines(path)) > 520]
    vague = [str(path.relative_to(ROOT)) for path in sources(CORE) if path.stem in VAGUE]
    assert not long, f"over the limit: {long}"
    assert not vague


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_importing_a_module_does_no_work() -> None:
    wrong = []
    for path in sources(CORE):
        for node in ast.parse(path.read_text(), str(path)).body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if not docstring and not isinstance(node, DEFINITIONS):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {type(node).__name__}")
    assert not wrong, "\n".join(wrong)


def test_no_module_holds_state() -> None:
    """Lists, dicts and sets at the top of a module are state, unless their name says constant."""
    wrong = []
    for path in sources(CORE):
        for node in ast.parse(path.read_text(), str(path)).body:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                mutable = isinstance(node.value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp)
                if not isinstance(target, ast.Name) or not mutable or target.id == "__all__":
                    continue
                if not target.id.strip("_").isupper():
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {target.id}")
    assert not wrong, "\n".join(wrong)


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT)) for path in sources(CORE) if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


def test_time_is_read_only_through_the_clock() -> None:
    """`time.time`, `time.sleep` and friends would not follow a virtual clock."""
    # Threads that watch real threads and processes live on real time.
    real = {
        "brokerkit/clock.py",
        "brokerkit/watchdog.py",
    }
    wrong = []
    for path in sources(CORE):
        name = str(path.relative_to(ROOT))
        if name in real or path.is_relative_to(CORE / "testing"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
                continue
            call = f"{node.value.id}.{node.attr}"
            if call in ("time.time", "time.monotonic", "time.sleep", "asyncio.sleep", "asyncio.wait_for"):
                wrong.append(f"{name}:{node.lineno} {call}")
    allowed = [place for place in wrong if place.endswith("asyncio.sleep")]
    wrong = [place for place in wrong if place not in allowed]
    assert not wrong, "\n".join(wrong)
    # asyncio.sleep(0) lets the loop turn and takes no time.
    naps = [path for path in sources(CORE) if "asyncio.sleep(" in path.read_text().replace("asyncio.sleep(0)", "")]
    assert {str(path.relative_to(ROOT)) for path in naps if not path.is_relative_to(CORE / "testing")} <= real
