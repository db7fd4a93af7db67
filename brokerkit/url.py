"""Broker URLs: one parser for every backend, tolerant of raw passwords, and one way to hide them.

``amqp://user:p@ss@h1,h2:5673/vhost?queue_type=classic``, ``rocketmq://ns1:9876;ns2:9876``,
``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``memory://name``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from brokerkit.errors import ConfigurationError

__all__ = ["HIDDEN", "BrokerUrl", "is_secret", "redact"]

#: What stands in the place of a secret.
HIDDEN = "***"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9_.\-]+", re.ASCII)
_SECRET_NAME = r"passw|passphrase|pwd|secret|token|access_?key|api_?key|private_?key|credential"
_SECRET = re.compile(rf"^pass$|{_SECRET_NAME}", re.IGNORECASE)
# Greedy up to the last "@" of the word, because a raw password may hold "@" and "/"; the second form reaches over
# blanks when what follows the colon cannot be a port.
_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*://[^\s:/@]*):(?:\S*@|(?!\d+(?:[/?,;'\"\s]|$))[^@\n]*@)", re.ASCII)
_SECRET_OPTION = re.compile(rf"([?&][^=&\s]*(?:{_SECRET_NAME})[^=&\s]*=|[?&]pass=)[^&\s'\"]*", re.IGNORECASE)
# Schemes without an authority: what follows is a path or a name.
_LOCAL = frozenset({"sqlite", "memory"})


def is_secret(name: str) -> bool:
    """Return whether a configuration key or option of this name holds a secret."""
    return _SECRET.search(name) is not None


def redact(text: str) -> str:
    """Return ``text`` with the password of every URL in it, and secret options of URLs, replaced by ``***``."""
    if "://" not in text:
        return text
    return _SECRET_OPTION.sub(rf"\1{HIDDEN}", _USERINFO.sub(rf"\1:{HIDDEN}@", text))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BrokerUrl:
    """A parsed broker URL.  ``str`` and ``repr`` hide the password; `reveal` does not.

    ``hosts`` holds (host, port or None) in the order of the URL, IPv6 hosts without brackets; it is empty where
    the URL names none.  ``path`` is decoded and has no leading separator: the virtual host of ``amqp``, the file
    of ``sqlite`` (absolute when it begins with ``/``), the name of ``memory``.
    """

    scheme: str
    user: str | None = None
    password: str | None = None
    hosts: tuple[tuple[str, int | None], ...] = ()
    path: str = ""
    query: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def parse(cls, text: str) -> BrokerUrl:
        """Parse ``text``; raise `ConfigurationError` that says what is wrong and never shows the password.

        A password may hold a raw ``@``, ``:`` or ``%``; ``/`` and ``?`` in it are written %2F and %3F.
        """
        if not isinstance(text, str):
            raise ConfigurationError(f"a broker URL must be a str, not {type(text).__name__}")
        text = text.strip()
        match = _SCHEME.match(text)
        if match is None:
            # What has no scheme may be anything, a bare password included, so nothing of it is shown.
            raise ConfigurationError("malformed broker URL: it must begin with a scheme, as in amqp:// or sqlite:///")
        return _Parser(text, match.group(1).lower(), text[match.end() :]).parse()

    @property
    def vhost(self) -> str:
        """The path as a virtual host: ``/`` where the URL has no path, ``/``, ``//`` or ``/%2F``."""
        return self.path or "/"

    def reveal(self) -> str:
        """Return the URL as text, password included; parsing it gives an equal `BrokerUrl`."""
        return self._text(self.password)

    def _text(self, password: str | None, query: Mapping[str, str] | None = None) -> str:
        query = self.query if query is None else query
        options = "&".join(f"{quote(name, safe='')}={quote(value, safe='*')}" for name, value in query.items())
        tail = f"?{options}" if options else ""
        if self.scheme == "memory":
            return f"memory://{quote(self.path, safe='')}{tail}"
        if self.scheme == "sqlite":
            return f"sqlite:///{quote(self.path, safe='/')}{tail}"
        login = ""
        if self.user is not None:
            secret = "" if password is None else f":{quote(password, safe='*')}"
            login = f"{quote(self.user, safe='')}{secret}@"
        hosts = ",".join(
            (f"[{quote(host, safe=':')}]" if ":" in host else host) + (f":{port}" if port is not None else "")
            for host, port in self.hosts
        )
        path = f"/{quote(self.path, safe='')}" if self.path else ""
        return f"{self.scheme}://{login}{hosts}{path}{tail}"

    def __str__(self) -> str:
        query = {name: HIDDEN if is_secret(name) else value for name, value in self.query.items()}
        return self._text(None if self.password is None else HIDDEN, query)

    def __repr__(self) -> str:
        return f"BrokerUrl({str(self)!r})"


class _Parser:
    """One parse; keeps the text so that every error can show it without its secrets."""

    def __init__(self, text: str, scheme: str, rest: str) -> None:
        self.scheme = scheme
        self.rest = rest
        self.shown = f"{scheme}://{_hide(rest)}"

    def parse(self) -> BrokerUrl:
        if self.scheme in _LOCAL:
            return self._local()
        end = min((at for at in (self.rest.find("/"), self.rest.find("?")) if at >= 0), default=len(self.rest))
        authority, tail = self.rest[:end], self.rest[end:]
        if "@" in tail:
            # Either a password with a raw "/" or "?", or a raw "@" in what follows: guessing could show a password.
            raise self._error(
                "an '@' follows the first '/' or '?'; write '/' in a password as %2F, '?' as %3F, "
                "and '@' behind the hosts as %40"
            )
        login, at, hosts = authority.rpartition("@")
        user, colon, password = login.partition(":")
        path, _, query = tail.partition("?")
        return BrokerUrl(
            scheme=self.scheme,
            user=self._decode("user", user) if at else None,
            password=self._decode("password", password) if colon else None,
            hosts=self._hosts(hosts),
            path=self._decode("path", path[1:]),
            query=self._query(query),
        )

    def _local(self) -> BrokerUrl:
        path, _, query = self.rest.partition("?")
        if self.scheme == "memory" and "@" in path:
            # Somebody took it for a server: it would be shown wherever the name of the store is.
            raise self._error("a store in memory has a name and no login: write memory://name")
        if self.scheme == "sqlite" and path:
            if not path.startswith("/"):
                raise self._error("write sqlite:///relative.db or sqlite:////absolute.db, with three or four slashes")
            path = path[1:]
        decoded = self._decode("path", path)
        if "\0" in decoded:
            raise self._error("the path holds a NUL character")
        return BrokerUrl(scheme=self.scheme, path=decoded, query=self._query(query))

    def _hosts(self, text: str) -> tuple[tuple[str, int | None], ...]:
        if not text:
            return ()
        return tuple(self._host(number, item.strip()) for number, item in enumerate(re.split("[,;]", text), 1))

    def _host(self, number: int, item: str) -> tuple[str, int | None]:
        if item.startswith("["):
            host, bracket, port = item[1:].partition("]")
            host = unquote(host)
            if not bracket or (port and not port.startswith(":")):
                raise self._error(f"host {number}: write an IPv6 address as [::1] or [::1]:5672")
            try:
                ipaddress.IPv6Address(host)
            except ValueError:
                raise self._error(f"host {number}: what stands in brackets is not an IPv6 address") from None
            return host, self._port(number, port[1:]) if port else None
        host, colon, port = item.partition(":")
        if ":" in port:
            raise self._error(f"host {number}: more than one ':'; write an IPv6 address in brackets, as in [::1]:5672")
        if not host:
            raise self._error(f"host {number} is empty")
        if not _HOST.fullmatch(host):
            raise self._error(f"host {number} holds a character that no host name has")
        return host, self._port(number, port) if colon else None

    def _port(self, number: int, text: str) -> int:
        # The text is not shown: in user:password without "@host" it is the password.
        if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= 65535):
            raise self._error(f"the port of host {number} is not a number from 1 to 65535")
        return int(text)

    def _query(self, text: str) -> dict[str, str]:
        options: dict[str, str] = {}
        for number, item in enumerate(filter(None, text.split("&")), 1):
            name, equals, value = item.partition("=")
            name = self._decode(f"option {number}", name)
            if not name or not equals:
                raise self._error(f"option {number} behind '?' is not of the form name=value")
            if name in options:
                raise self._error(f"option {name!r} is given twice")
            options[name] = self._decode(f"option {name!r}", value)
        return options

    def _decode(self, what: str, text: str) -> str:
        try:
            decoded = unquote(text, errors="strict")
            decoded.encode()
        except UnicodeError:
            raise self._error(f"the {what} is not UTF-8") from None
        return decoded

    def _error(self, problem: str) -> ConfigurationError:
        return ConfigurationError(f"malformed broker URL {self.shown!r}: {problem}")


def _hide(rest: str) -> str:
    """Return what follows the scheme with all that may be a password hidden, even when nothing parses."""
    login, at, tail = rest.rpartition("@")
    if at:
        user, colon, _ = login.partition(":")
        rest = f"{user}:{HIDDEN}@{tail}" if colon else f"{HIDDEN}@{tail}"
    else:
        rest = re.sub(r":(?!\d{1,5}(?:[/?,;]|$))[^/?,;]*", f":{HIDDEN}", rest)
    return _SECRET_OPTION.sub(rf"\1{HIDDEN}", rest)
