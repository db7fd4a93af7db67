"""From ``MODULE:NAME`` to the manager of an application; what cannot be found is explained."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from brokerkit.blocking import Manager
from brokerkit.errors import BrokerError, ConfigurationError
from brokerkit.manager import AsyncManager
from brokerkit.router import Router
from brokerkit.suggest import did_you_mean

__all__ = ["AnyManager", "check_targets", "files_below", "load_manager", "project_files"]

#: Files that are watched at most where it is not known which ones the project is made of.
_MOST_FILES = 5_000

AnyManager = Manager | AsyncManager


def load_manager(targets: Iterable[str], name: str | None = None) -> AnyManager:
    """Import the modules and return the one manager that they hold.

    The first target says where it is: ``module:attribute``, with a manager or a factory of one, or ``module`` with
    one manager in it (``name`` chooses among several).  Further modules are imported for the handlers that they
    register; one that names a Router has it included.  Raise `ConfigurationError`.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    first, *others = targets
    module, attribute = _load(first)
    manager = _only_manager(module, name) if attribute is None else _manager_at(module, attribute)
    for other in others:
        if hasattr(module, other) and importlib.util.find_spec(other) is None:
            raise ConfigurationError(f"there is no module {other!r}; for that of {first} write {first}:{other}")
        module, attribute = _load(other)
        if attribute is None:
            continue
        found = _attribute(module, attribute)
        if isinstance(found, Router) and not isinstance(found, AnyManager):
            manager.include(found)
        elif found is not manager:
            raise ConfigurationError(
                f"{other} is another manager than {first}: a worker runs one; start a second worker for the other"
            )
    return manager


def check_targets(targets: Iterable[str]) -> None:
    """Raise `ConfigurationError` for what is not ``MODULE`` or ``MODULE:NAME``; imports nothing."""
    for target in targets:
        _split(target)


def project_files() -> list[str]:
    """Return the files of the imported modules that belong to the project: below the working directory."""
    here = Path.cwd().resolve()
    not_ours = [Path(prefix).resolve() for prefix in {sys.prefix, sys.base_prefix}]
    found = set()
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not file.endswith(".py"):
            continue
        path = Path(file).resolve()
        if not path.is_relative_to(here) or "site-packages" in path.parts:
            continue
        if not any(path.is_relative_to(prefix) and prefix != here for prefix in not_ours):
            found.add(str(path))
    return sorted(found)


def files_below() -> list[str]:
    """Return all Python files below the working directory but those of environments: what a failed import may need.

    Python forgets a module whose import failed, so that nobody can say which files it was made of.
    """
    found: list[str] = []
    for folder, folders, files in os.walk(Path.cwd().resolve()):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and name != "node_modules" and not Path(folder, name, "pyvenv.cfg").exists()
        ]
        found += [os.path.join(folder, name) for name in files if name.endswith(".py")]
        if len(found) > _MOST_FILES:
            break
    return sorted(found)


# --- modules ----------------------------------------------------------------------------------------------------------


def _load(target: str) -> tuple[ModuleType, str | None]:
    name, attribute = _split(target)
    return _import(name), attribute


def _split(target: str) -> tuple[str, str | None]:
    name, colon, attribute = target.partition(":")
    if name.endswith(".py") or "/" in name or os.sep in name:
        guess = os.path.normpath(name.removesuffix(".py")).strip("./").replace(os.sep, ".")
        raise ConfigurationError(
            f"{name} is the path of a file; give the module as an import would: {guess}{colon}{attribute}, "
            f"from the directory that it is imported from"
        )
    if not name or (colon and not attribute) or not all(part.isidentifier() for part in name.split(".")):
        raise ConfigurationError(f"{target!r} is not MODULE:NAME; an example: app:manager")
    return name, attribute or None


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name is not None and (name == missing.name or name.startswith(missing.name + ".")):
            raise _not_there(name, missing.name) from None
        raise _failed(name, missing) from None
    except BrokerError as error:
        raise ConfigurationError(f"importing {name} failed: {error}{_place(error)}") from None
    except Exception as error:
        raise _failed(name, error) from None
    except SystemExit as left:
        raise ConfigurationError(
            f"importing {name} ended the process ({_ended(left.code)}); "
            f'put what the script runs below: if __name__ == "__main__":'
        ) from None


def _ended(code: object) -> str:
    return f"exit code {code or 0}" if code is None or isinstance(code, int) else str(code)


def _not_there(name: str, missing: str) -> ConfigurationError:
    parent, _, last = missing.rpartition(".")
    folders = [Path(folder) for folder in getattr(sys.modules.get(parent), "__path__", ())] if parent else [Path.cwd()]
    looked = " and ".join(str(folder / f"{last}.py") for folder in folders) or f"a package {parent}"
    hint = did_you_mean(last, (candidate for folder in folders for candidate in _modules(folder)))
    return ConfigurationError(f"there is no module {missing!r}: looked for {looked} and on the import path{hint}")


def _modules(folder: Path) -> list[str]:
    try:
        entries = list(folder.iterdir())
    except OSError:
        return []
    names = [entry.stem if entry.suffix == ".py" else entry.name for entry in entries if _is_module(entry)]
    return [name for name in names if name.isidentifier()]


def _is_module(entry: Path) -> bool:
    return entry.suffix == ".py" or (entry.is_dir() and any(entry.glob("*.py")))


def _failed(name: str, error: BaseException) -> ConfigurationError:
    return ConfigurationError(f"importing {name} failed: {_line(error)}{_place(error)}")


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(error: BaseException) -> str:
    """Return the lines of the project that the error came through: one beside it, several below it."""
    if isinstance(error, SyntaxError):
        # Its text names the place.
        return ""
    here = str(Path.cwd()) + os.sep
    ours = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(here) and "site-packages" not in frame.filename
    ]
    if len(ours) > 1:
        return "".join(
            f"\n  {os.path.relpath(frame.filename)}, line {frame.lineno}, in {frame.name}: {frame.line}"
            for frame in ours
        )
    return f" ({os.path.relpath(ours[0].filename)}, line {ours[0].lineno})" if ours else ""


# --- attributes -------------------------------------------------------------------------------------------------------


def _only_manager(module: ModuleType, name: str | None) -> AnyManager:
    found = _managers(module)
    if name is not None:
        found = {key: one for key, one in found.items() if one.name == name}
    distinct = list({id(one): one for one in found.values()}.values())
    if len(distinct) == 1:
        return distinct[0]
    of_name = f" with the name {name!r}" if name is not None else ""
    if distinct:
        choices = ", ".join(f"{module.__name__}:{key}" for key in sorted(found))
        raise ConfigurationError(f"module {module.__name__!r} holds several managers{of_name}; choose one: {choices}")
    others = ", ".join(f"{key} is {one.name!r}" for key, one in sorted(_managers(module).items()))
    if others:
        raise ConfigurationError(f"module {module.__name__!r} holds no manager{of_name}: {others}")
    routers = sorted(key for key, one in vars(module).items() if isinstance(one, Router))
    hint = f"; it holds a Router ({', '.join(routers)}): name the module whose manager includes it" if routers else ""
    raise ConfigurationError(
        f"module {module.__name__!r} holds no Manager or AsyncManager{of_name}{hint or '; write: manager = Manager()'}"
    )


def _managers(module: ModuleType) -> dict[str, AnyManager]:
    found = {key: one for key, one in vars(module).items() if isinstance(one, AnyManager)}
    # `mq = manager.aio` is the same manager once more.
    twins = {id(one.aio) for one in found.values() if isinstance(one, Manager)}
    return {key: one for key, one in found.items() if id(one) not in twins}


def _attribute(module: ModuleType, attribute: str) -> Any:
    found: Any = module
    for step in attribute.split("."):
        try:
            found = getattr(found, step)
        except AttributeError:
            known = [key for key in vars(module) if not key.startswith("_")]
            managers = ", ".join(sorted(_managers(module))) or "none"
            raise ConfigurationError(
                f"module {module.__name__!r} has no {attribute!r}{did_you_mean(step, known)} "
                f"(managers there: {managers})"
            ) from None
    return found


def _manager_at(module: ModuleType, attribute: str) -> AnyManager:
    found = _attribute(module, attribute)
    where = f"{module.__name__}:{attribute}"
    if isinstance(found, AnyManager):
        return found
    if isinstance(found, Router):
        raise ConfigurationError(f"{where} is a Router; a worker runs a manager that includes it")
    if isinstance(found, type) and issubclass(found, AnyManager) and found.__module__.startswith("brokerkit."):
        made_there = ", ".join(f"{module.__name__}:{key}" for key in sorted(_managers(module)))
        raise ConfigurationError(
            f"{where} is the class; a worker runs an instance of it: {made_there or 'write: manager = Manager()'}"
        )
    if not callable(found) or (isinstance(found, type) and not issubclass(found, AnyManager)):
        what = "class" if isinstance(found, type) else type(found).__name__
        raise ConfigurationError(f"{where} is a {what}, not a Manager, an AsyncManager or a factory of one")
    if _needs_arguments(found):
        managers = ", ".join(f"{module.__name__}:{key}" for key in sorted(_managers(module))) or "none"
        raise ConfigurationError(
            f"{where} is a function with parameters, so it is no factory of a manager (managers there: {managers})"
        )
    try:
        made = found()
    except Exception as error:
        raise ConfigurationError(f"the factory {where} failed: {_line(error)}{_place(error)}") from None
    if not isinstance(made, AnyManager):
        close = getattr(made, "close", None)
        if callable(close):
            close()
        raise ConfigurationError(
            f"the factory {where} returned a {type(made).__name__}; a factory is a plain function without parameters "
            f"that returns a Manager or an AsyncManager"
        )
    return made


def _needs_arguments(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return True
    except ValueError:
        # Not written in Python: calling it will tell.
        return False
    return False
