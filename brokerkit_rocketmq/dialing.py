"""`Dialer`: how one connection to a NameServer or a broker is made, over TCP or TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

from brokerkit.errors import ConfigurationError
from brokerkit_rocketmq.addresses import Address, parse_address
from brokerkit_rocketmq.errors import NAME, unreachable
from brokerkit_rocketmq.remoting.connection import OnRequest, RemotingConnection, dial
from brokerkit_rocketmq.remoting.errors import RemotingError
from brokerkit_rocketmq.remoting.signing import Signer

__all__ = ["DialOptions", "Dialer", "TlsOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsOptions:
    """How TLS is spoken."""

    #: Check the certificate of the other side and its name.
    verify: bool = True
    #: Certificates to trust; the system's when not set.
    ca_file: str | None = None
    #: Our certificate, where the other side wants one, its key and the key's password.
    cert_file: str | None = None
    key_file: str | None = None
    key_password: str | None = field(default=None, repr=False)
    #: The name in the certificates of the other side; the host's when not set.
    server_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DialOptions:
    """What all connections of a client have in common."""

    #: Seconds for one attempt.
    timeout: float = 5.0
    #: None: without TLS.
    tls: TlsOptions | None = None
    #: None: requests are not signed.
    signer: Signer | None = None
    #: Where to connect instead: the address as configured or registered, with or without its port, to the one that is
    #: reachable from here.
    address_map: Mapping[str, str] = field(default_factory=dict)
    #: Seconds without a byte after which the kernel asks a silent peer whether it is there.
    heartbeat: float = 6.0


class Dialer:
    """Makes any number of connections."""

    def __init__(self, options: DialOptions, on_request: OnRequest | None = None) -> None:
        """``on_request`` answers the requests of brokers.  Raise `ConfigurationError` for files that cannot be used."""
        self.options = options
        self._on_request = on_request
        self._tls = _tls_context(options.tls) if options.tls is not None else None

    async def dial(self, address: str, *, server_name: str | None = None) -> RemotingConnection:
        """Return a connection to ``address``, which is ``host:port``.

        ``server_name``: the name in its certificate, where that is neither configured nor the host.  Raise
        `BrokerUnavailable` after the timeout or when it cannot be reached; not retryable where TLS is set up wrongly.
        """
        options = self.options
        asked = parse_address(address)
        target = self._mapped(asked)
        if self._tls is not None and options.tls is not None:
            server_name = options.tls.server_name or server_name or asked.host
        try:
            connection = await dial(
                target.host,
                target.port,
                ssl=self._tls,
                server_hostname=server_name,
                signer=options.signer,
                on_request=self._on_request,
                timeout=options.timeout,
            )
        except (OSError, UnicodeError, RemotingError) as exc:
            raise unreachable(exc, address) from exc
        connection.peer = address
        _watch_socket(connection.socket, options.heartbeat)
        return connection

    def _mapped(self, address: Address) -> Address:
        for known in (str(address), address.host):
            real = self.options.address_map.get(known)
            if real is not None:
                return parse_address(real, address.port)
        return address


def _watch_socket(sock: socket.socket | None, heartbeat: float) -> None:
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


def _tls_context(options: TlsOptions) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=options.ca_file)
        if options.cert_file is not None:
            context.load_cert_chain(options.cert_file, options.key_file, options.key_password or "")
    except (OSError, ValueError) as exc:
        files = ", ".join(filter(None, (options.ca_file, options.cert_file, options.key_file)))
        reason = getattr(exc, "strerror", None) or str(exc)
        raise ConfigurationError(f"the TLS files ({files}) cannot be used: {reason}", backend=NAME) from exc
    if not options.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
