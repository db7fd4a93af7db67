"""The management API and the Prometheus endpoint: figures that AMQP itself does not tell."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import re
import ssl
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from brokerkit_rabbitmq.settings import Address, RabbitMQSettings

__all__ = ["Management", "ManagementUnavailable"]

_MANAGEMENT_PORT, _MANAGEMENT_TLS_PORT = 15672, 15671
#: Seconds for one request.
_TIMEOUT = 5.0
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class ManagementUnavailable(Exception):
    """Nobody answers there, or not to us; the text says why and holds no credential."""


class Management:
    """Asks over HTTP, in a thread.  One that does not answer is not asked again for a while."""

    def __init__(self, settings: RabbitMQSettings, addresses: Sequence[Address]) -> None:
        self._vhost = settings.vhost or "/"
        #: Where it is asked, in this order; they may hold a login.
        self.urls = _urls(settings, addresses)
        self._prometheus = settings.prometheus_url
        self._settings = settings
        self._login: str | None = None
        if settings.credentials is None and settings.mechanism == "PLAIN":
            user = settings.user if settings.user is not None else "guest"
            self._login = _basic(user, settings.password.get_secret_value() if settings.password else "guest")

    @property
    def offered(self) -> bool:
        """Whether there is an address to ask at all."""
        return bool(self.urls)

    async def queue(self, name: str) -> dict[str, Any]:
        """Return messages_ready, messages_unacknowledged, consumers and type of a queue, as far as they are known.

        Raise `ManagementUnavailable`.
        """
        columns = "name,messages_ready,messages_unacknowledged,consumers,type,arguments"
        path = f"/api/queues/{quote(self._vhost, safe='')}/{quote(name, safe='')}?columns={columns}"
        found = await self._get(path)
        if not isinstance(found, dict):
            raise ManagementUnavailable("the management API answered something else than a queue")
        return found

    async def queue_names(self) -> list[str]:
        """Return the names of all queues of the virtual host.  Raise `ManagementUnavailable`."""
        found = await self._get(f"/api/queues/{quote(self._vhost, safe='')}?columns=name&disable_stats=true")
        return [str(queue["name"]) for queue in found] if isinstance(found, list) else []

    async def prometheus_queue(self, name: str) -> dict[str, int]:
        """Return messages_ready, messages_unacked and consumers of a queue as Prometheus sees them.

        Raise `ManagementUnavailable`.
        """
        if not self._prometheus:
            raise ManagementUnavailable("no prometheus_url is configured")
        families = "family=queue_coarse_metrics&family=queue_consumer_count"
        path = f"/metrics/detailed?vhost={quote(self._vhost, safe='')}&{families}"
        text = (await asyncio.to_thread(self._fetch, self._prometheus, path, False)).decode("utf-8", "replace")
        figures: dict[str, int] = {}
        for line in text.splitlines():
            if not line.startswith("rabbitmq_detailed_queue_"):
                continue
            labels = dict(_LABEL.findall(line))
            if labels.get("queue") == name and labels.get("vhost") == self._vhost:
                metric = line.partition("{")[0].removeprefix("rabbitmq_detailed_queue_")
                figures[metric] = int(float(line.rpartition(" ")[2]))
        return figures

    async def _get(self, path: str) -> Any:
        reasons = []
        for url in self.urls:
            try:
                return json.loads(await asyncio.to_thread(self._fetch, url, path, True))
            except ManagementUnavailable as exc:
                reasons.append(str(exc))
            except ValueError:
                reasons.append(f"{url} does not answer with JSON")
        raise ManagementUnavailable("; ".join(reasons) or "there is no management URL")

    def _fetch(self, url: str, path: str, login: bool) -> bytes:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "127.0.0.1", parts.port
        except ValueError:
            # Not shown: it may hold a password.
            raise ManagementUnavailable("management_url or prometheus_url is no address") from None
        where = f"{parts.scheme}://{host}:{port}"
        headers: dict[str, str] = {}
        if login:
            own = _basic(unquote(parts.username), unquote(parts.password or "")) if parts.username else self._login
            if own is None:
                raise ManagementUnavailable(f"{where} is not asked: nothing says how to log in; name a user in its URL")
            headers["Authorization"] = f"Basic {own}"
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT, context=self._tls())
        else:
            connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT)
        try:
            connection.request("GET", parts.path.rstrip("/") + path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as exc:
            raise ManagementUnavailable(f"{where} does not answer: {exc}") from exc
        finally:
            connection.close()
        if answer.status != 200:
            raise ManagementUnavailable(f"{where} answers {answer.status} {answer.reason}")
        return body

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._settings.ca_file)
        if not self._settings.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def _basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def _urls(settings: RabbitMQSettings, addresses: Sequence[Address]) -> list[str]:
    if settings.management_url is not None:
        return [url.strip() for url in settings.management_url.split(",") if url.strip()]
    # Only where AMQP is at its usual port may the API be expected at its own.  A password that travels encrypted to the
    # broker does so here too.
    scheme, port = ("https", _MANAGEMENT_TLS_PORT) if settings.tls else ("http", _MANAGEMENT_PORT)
    return [
        f"{scheme}://{f'[{one.host}]' if ':' in one.host else one.host}:{port}"
        for one in addresses
        if one.port in (5671, 5672)
    ]
