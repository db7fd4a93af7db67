"""Signatures of requests, for brokers with access control."""

from __future__ import annotations

import base64
import hmac

__all__ = ["Signer"]

#: Left out by the servers (``MixAll.UNIQUE_MSG_QUERY_FLAG``): 4.9.x always, 5.x for requests of a version before 400.
UNSIGNED = "_UNIQUE_KEY_QUERY"


class Signer:
    """Signs requests with one account.

    The signature is HMAC-SHA1 over the values of all header fields in the order of their names, followed by the
    body (``AclClientRPCHook`` and ``AclUtils`` of the Java client).  4.9.x and 5.x take the same one.
    """

    __slots__ = ("_access_key", "_secret", "_security_token")

    def __init__(self, access_key: str, secret_key: str, security_token: str | None = None) -> None:
        self._access_key = access_key
        self._secret = secret_key.encode()
        self._security_token = security_token

    def __repr__(self) -> str:
        return "Signer(***)"

    def sign(self, fields: dict[str, str], body: bytes) -> None:
        """Add ``AccessKey``, ``SecurityToken`` where there is one, and ``Signature`` to ``fields``."""
        fields.pop("Signature", None)
        fields["AccessKey"] = self._access_key
        if self._security_token is not None:
            fields["SecurityToken"] = self._security_token
        values = "".join(fields[name] for name in sorted(fields) if name != UNSIGNED)
        # As Java encodes half of a surrogate pair: by a question mark.
        content = values.encode("utf-8", "replace") + body
        fields["Signature"] = base64.b64encode(hmac.digest(self._secret, content, "sha1")).decode("ascii")
