"""The order in which a broker is looked for, and what its absence means."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points

from brokerkit.errors import BrokerError, ConfigurationError
from brokerkit.testing.services.docker import docker_missing
from brokerkit.testing.services.service import Missing, Service, ServiceProvider

__all__ = ["PROVIDER_GROUP", "find_service", "is_required", "load_providers", "service_or_skip"]

#: Entry points of this group name a class or function that makes a `ServiceProvider` when called.
PROVIDER_GROUP = "brokerkit.services"


def load_providers() -> tuple[ServiceProvider, ...]:
    """Return the providers of all installed packages."""
    return tuple(point.load()() for point in entry_points(group=PROVIDER_GROUP))


def is_required(name: str, environ: Mapping[str, str] | None = None) -> bool:
    """Return whether BROKERKIT_REQUIRE, a list with commas, names the broker."""
    names = (environ if environ is not None else os.environ).get("BROKERKIT_REQUIRE", "")
    return name.lower() in {entry.strip().lower() for entry in names.split(",")}


def find_service(
    name: str,
    *,
    providers: Iterable[ServiceProvider] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Service | Missing:
    """Return a running broker, or why there is none; the caller closes it.

    In this order: the address in ``BROKERKIT_TEST_<NAME>_URL`` (and then nothing else), a private node from local
    binaries, a container.  ``providers`` defaults to those of the installed packages, ``environ`` to the process's.
    `ConfigurationError` when no provider has the name.
    """
    environ = os.environ if environ is None else environ
    known = {provider.name: provider for provider in (load_providers() if providers is None else providers)}
    provider = known.get(name)
    if provider is None:
        raise ConfigurationError(
            f"no provider for the service {name!r}: known are {', '.join(sorted(known)) or 'none'}; "
            f"a package adds one by an entry point of the group {PROVIDER_GROUP!r}"
        )
    variable = f"BROKERKIT_TEST_{name.upper().replace('-', '_')}_URL"
    reasons: list[str] = []
    steps: list[tuple[str, Callable[[], Service | Missing]]]
    if url := environ.get(variable):
        # Somebody chose this broker: another one in its place would test something else.
        steps = [(variable, lambda: provider.from_environment(url))]
    else:
        reasons.append(f"{variable} is not set")
        steps = [("local", provider.local), ("docker", lambda: docker_missing() or provider.docker())]
    for label, step in steps:
        try:
            found = step()
        except BrokerError as error:
            reasons.append(f"{label}: {error}")
            continue
        if not isinstance(found, Missing):
            return found
        reasons.append(f"{label}: {found.reason}")
    return Missing(name, "; ".join(reasons), is_required(name, environ))


def service_or_skip(
    name: str,
    *,
    providers: Iterable[ServiceProvider] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Service:
    """Do what `find_service` does, but skip the running test, or fail it where BROKERKIT_REQUIRE names the broker."""
    import pytest

    found = find_service(name, providers=providers, environ=environ)
    if not isinstance(found, Missing):
        return found
    if found.required:
        pytest.fail(f"{found} (BROKERKIT_REQUIRE asks for it)", pytrace=False)
    pytest.skip(str(found))
