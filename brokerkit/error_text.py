"""How an error is shown in a header, a log line or a hook: without credentials, cut, and about the application."""

from __future__ import annotations

import traceback
from types import TracebackType

from brokerkit.errors import BrokerError, Reject
from brokerkit.process_executor import ChildTraceback
from brokerkit.url import redact

__all__ = ["clean_text", "clean_traceback", "handler_traceback", "named_text"]

#: A dead letter keeps at most so many characters of the error's text and of the end of its traceback.
_TEXT_LIMIT = 1_000
_TRACEBACK_LIMIT = 4_000
#: Frames of a traceback that are kept: the innermost ones.
_FRAMES = 20


def clean_text(error: BaseException | str) -> str:
    """Return the text of an error as a header, a log line or a hook may show it.

    Free of credentials and of what UTF-8 cannot encode, and cut: the text of an error may hold anything.
    """
    return _clean(str(error.reason if isinstance(error, Reject) else error))[:_TEXT_LIMIT]


def named_text(error: BaseException) -> str:
    """Return the type of an error and its `clean_text`."""
    return f"{type(error).__name__}: {clean_text(error)}"


def clean_traceback(error: BaseException) -> str:
    """Return the end of the traceback of an error, which is where the error is, as `clean_text` does its text."""
    return _shown(error, error.__traceback__)


def handler_traceback(error: BaseException) -> str:
    """Return the `clean_traceback` of what a handler failed with, from the handler on.

    The frames of brokerkit that lead there say nothing to the application.
    """
    if isinstance(error.__cause__, ChildTraceback):
        # It failed in a child process, which knows where; the frames here are those that raised it again.
        return _clean(error.__cause__.text)[-_TRACEBACK_LIMIT:]
    return _shown(error, _from_the_handler_on(error))


def _from_the_handler_on(error: BaseException) -> TracebackType | None:
    trace, innermost = error.__traceback__, None
    while trace is not None and _is_ours(trace):
        trace, innermost = trace.tb_next, trace
    if trace is None and not isinstance(error, BrokerError | TimeoutError):
        # No error that brokerkit means to raise: a fault of its own, to be found.
        return innermost
    return trace


def _is_ours(trace: TracebackType) -> bool:
    module = trace.tb_frame.f_globals.get("__name__", "")
    # The handlers of the conformance suite are an application's.
    return isinstance(module, str) and module.startswith("brokerkit.") and not module.startswith("brokerkit.testing.")


def _shown(error: BaseException, trace: TracebackType | None) -> str:
    lines = "".join(traceback.format_exception(type(error), error, trace, limit=-_FRAMES))
    text = str(error)
    if len(text) > _TEXT_LIMIT:
        # A long text, say of a validation, would leave no room for the lines of code.
        lines = lines.replace(text, f"{text[:_TEXT_LIMIT]} …")
    return _clean(lines)[-_TRACEBACK_LIMIT:]


def _clean(text: str) -> str:
    # Cutting comes last: of a URL that was cut the password could not be recognised.
    return redact(text).encode("utf-8", "replace").decode()
