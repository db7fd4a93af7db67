"""Making one connection to one host: TCP, TLS, login."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import os
import socket
import ssl
import sys
from typing import Any

from brokerkit.errors import AccessRefused, BrokerError, BrokerUnavailable, ConfigurationError
from brokerkit.spi import Clock, wait
from brokerkit_rabbitmq.errors import NAME, link_error
from brokerkit_rabbitmq.protocol import Amqp, Tuning
from brokerkit_rabbitmq.settings import Address, RabbitMQSettings

__all__ = ["Dialer"]

_CHANNEL_MAX = 2047


class Dialer:
    """Knows how to reach the broker and how to log in.  Makes any number of connections."""

    def __init__(
        self, settings: RabbitMQSettings, clock: Clock, *, client_id: str, timeout: float, call_timeout: float
    ) -> None:
        """``timeout``: seconds for one `dial`; ``call_timeout``: for one call on a connection.

        Raise `ConfigurationError` for files and functions that cannot be used.
        """
        self._settings = settings
        self._clock = clock
        self._client_id = client_id
        self._call_timeout = call_timeout
        self._timeout = timeout
        self._tls = _tls_context(settings) if settings.tls else None
        self._credentials = _credentials(settings.credentials)

    async def dial(self, address: Address, role: str) -> Amqp:
        """Return a connection to ``address`` that is logged in; brokers show ``role`` as part of its name.

        Raise `BrokerUnavailable` after the timeout or when it cannot be reached, `AccessRefused` for wrong
        credentials or a wrong virtual host.
        """
        loop = asyncio.get_running_loop()
        made: list[Amqp] = []
        task = loop.create_task(self._dial(address, role, made), name=f"brokerkit-dial-{address}")
        error: BrokerError
        amqp: Amqp | None = None
        try:
            if await wait(self._clock, task, self._timeout):
                amqp = task.result()
                return amqp
            error = BrokerUnavailable(f"no answer from {address} in {self._timeout:g} s", backend=NAME)
        except (OSError, UnicodeError, BrokerError) as exc:
            error = link_error(exc, str(address))
        finally:
            if amqp is None:
                # Also when it was made in the moment of a cancellation.
                await _give_up(task, made)
        raise error

    async def _dial(self, address: Address, role: str, made: list[Amqp]) -> Amqp:
        loop = asyncio.get_running_loop()
        settings = self._settings
        user, password = await self._login()

        def make() -> Amqp:
            tuning = Tuning(settings.heartbeat, settings.frame_max, _CHANNEL_MAX)
            amqp = Amqp(loop, self._clock, tuning, self._call_timeout)
            amqp.peer = str(address)
            made.append(amqp)
            return amqp

        name = (settings.server_name or address.host) if self._tls is not None else None
        transport, amqp = await loop.create_connection(
            make, address.host, address.port, ssl=self._tls, server_hostname=name
        )
        _watch_socket(transport.get_extra_info("socket"), settings.heartbeat)
        response = f"\0{user}\0{password}" if settings.mechanism == "PLAIN" else ""
        try:
            await amqp.login(
                settings.mechanism, response, settings.vhost or "/", _client_properties(self._client_id, role)
            )
        except AccessRefused as exc:
            refusal = AccessRefused(f"{address} refused user {user!r}: {exc.message}", backend=NAME)
            raise refusal from exc
        return amqp

    async def _login(self) -> tuple[str, str]:
        settings = self._settings
        if self._credentials is None:
            password = settings.password.get_secret_value() if settings.password is not None else "guest"
            return settings.user if settings.user is not None else "guest", password
        try:
            answer = self._credentials()
            if inspect.isawaitable(answer):
                answer = await answer
        except BrokerError:
            raise
        except Exception as exc:
            # Not its text, which may hold what it failed with.  The link tries again.
            raise BrokerUnavailable(f"credentials raised {type(exc).__name__}", backend=NAME) from exc
        if not (isinstance(answer, tuple) and len(answer) == 2 and all(isinstance(part, str) for part in answer)):
            # Not shown: it may hold a password.
            raise ConfigurationError("credentials must return a tuple (user, password) of texts", backend=NAME)
        return answer


async def _give_up(task: asyncio.Task[Amqp], made: list[Amqp]) -> None:
    task.cancel()
    with contextlib.suppress(Exception, asyncio.CancelledError):
        await asyncio.wait((task,))
    for amqp in made:
        amqp.abort(BrokerUnavailable("the login was given up", backend=NAME))


def _client_properties(client_id: str, role: str) -> dict[str, Any]:
    return {
        "product": "brokerkit",
        "platform": f"Python {sys.version.split()[0]}",
        # What the management page shows as the client's name.
        "connection_name": f"{client_id} {role} ({socket.gethostname()}, pid {os.getpid()})",
        "capabilities": {
            "publisher_confirms": True,
            "consumer_cancel_notify": True,
            "exchange_exchange_bindings": True,
            "basic.nack": True,
            "connection.blocked": True,
            # Without it wrong credentials look like a lost link.
            "authentication_failure_close": True,
        },
    }


def _watch_socket(sock: Any, heartbeat: float) -> None:
    """Let the kernel notice a dead peer too, also when we are the only one to speak."""
    if sock is None or not heartbeat:
        return
    interval = max(1, int(heartbeat))
    for name, value in (
        ("SO_KEEPALIVE", 1),
        ("TCP_KEEPIDLE", interval),
        ("TCP_KEEPINTVL", interval),
        ("TCP_KEEPCNT", 2),
        ("TCP_USER_TIMEOUT", int(2000 * heartbeat)),
    ):
        option = getattr(socket, name, None)  # not every system has all of them
        if option is not None:
            level = socket.SOL_SOCKET if name == "SO_KEEPALIVE" else socket.IPPROTO_TCP
            with contextlib.suppress(OSError):
                sock.setsockopt(level, option, value)


def _tls_context(settings: RabbitMQSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=settings.ca_file)
        if settings.cert_file is not None:
            secret = settings.key_password
            context.load_cert_chain(
                settings.cert_file, settings.key_file, secret.get_secret_value() if secret is not None else ""
            )
    except (OSError, ValueError) as exc:
        files = ", ".join(filter(None, (settings.ca_file, settings.cert_file, settings.key_file)))
        reason = getattr(exc, "strerror", None) or str(exc)
        raise ConfigurationError(f"the TLS files ({files}) cannot be used: {reason}", backend=NAME) from exc
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _credentials(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    module, colon, name = given.partition(":")
    try:
        found = getattr(importlib.import_module(module), name) if colon else None
    except (ImportError, AttributeError) as exc:
        raise ConfigurationError(f"credentials: {given!r} cannot be imported: {exc}", backend=NAME) from exc
    if not callable(found):
        raise ConfigurationError(f"credentials: {given!r} is not of the form module:function", backend=NAME)
    return found
