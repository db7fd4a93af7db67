"""Certificates for TLS tests: good ones, and each kind of bad one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from brokerkit.errors import ConfigurationError

__all__ = ["Certificate", "Certificates", "make_certificates"]

_VALID_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM files of a certificate with its chain, and of its private key."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Certificates:
    """One authority and what it signed, and another one that nobody trusts."""

    #: PEM file of the authority that clients and servers trust.
    authority: Path
    #: For localhost, 127.0.0.1 and ::1, and as bad as its name says for the others.
    server: Certificate
    server_expired: Certificate
    server_of_other_host: Certificate
    server_of_unknown_authority: Certificate
    client: Certificate
    client_of_unknown_authority: Certificate
    #: PEM file of the authority that signed the two above.
    unknown_authority: Path


def make_certificates(directory: Path) -> Certificates:
    """Make a set of certificates in ``directory``, which must exist.

    `ConfigurationError` when trustme is not installed.
    """
    try:
        import trustme
    except ImportError as error:
        raise ConfigurationError("certificates for tests need trustme: pip install trustme") from error

    def write(
        name: str, signer: trustme.CA, *identities: str, until: datetime | None = None, since: datetime | None = None
    ) -> Certificate:
        issued = signer.issue_cert(*identities, not_before=since, not_after=until)
        files = Certificate(directory / f"{name}.pem", directory / f"{name}.key.pem")
        files.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        files.key.write_bytes(issued.private_key_pem.bytes())
        return files

    trusted, unknown = trustme.CA(organization_name="brokerkit tests"), trustme.CA(organization_name="somebody else")
    authority, unknown_authority = directory / "authority.pem", directory / "unknown_authority.pem"
    trusted.cert_pem.write_to_path(str(authority))
    unknown.cert_pem.write_to_path(str(unknown_authority))
    now = datetime.now(UTC)
    return Certificates(
        authority=authority,
        server=write("server", trusted, *_VALID_NAMES),
        server_expired=write(
            "server_expired", trusted, *_VALID_NAMES, since=now - timedelta(days=30), until=now - timedelta(days=1)
        ),
        server_of_other_host=write("server_of_other_host", trusted, "elsewhere.example"),
        server_of_unknown_authority=write("server_of_unknown_authority", unknown, *_VALID_NAMES),
        client=write("client", trusted, "client@example.org"),
        client_of_unknown_authority=write("client_of_unknown_authority", unknown, "client@example.org"),
        unknown_authority=unknown_authority,
    )
