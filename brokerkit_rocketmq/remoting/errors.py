"""What goes wrong between a request and its answer.

RemotingError
├── NotConnected     the request was never written: it has no effect
├── ConnectionLost   it was written and the connection ended: the outcome is unknown
├── RequestTimeout   it was written and no answer came in time: the outcome is unknown
├── FrameError       the peer sent what is no frame; nothing after it can be understood
└── Oversized        the request is larger than a peer reads; it was not written
"""

from __future__ import annotations

__all__ = ["ConnectionLost", "FrameError", "NotConnected", "Oversized", "RemotingError", "RequestTimeout"]


class RemotingError(Exception):
    """The base; the text names the peer and never holds a credential."""


class NotConnected(RemotingError):
    """There is no connection; the request was never written."""


class ConnectionLost(RemotingError):
    """The connection ended after the request was written; the outcome is unknown."""


class RequestTimeout(RemotingError):
    """No answer came in time; the outcome is unknown."""


class FrameError(RemotingError):
    """The bytes of the peer are no frames."""


class Oversized(RemotingError):
    """The frame is larger than the limit; it was not written."""
