"""The errors that callers can catch. Every message is one line: what is wrong, where, what to do."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Qwen3TTSError(Exception):
    """Base of every error that this package raises on purpose."""


class BundleError(Qwen3TTSError):
    """A bundle that is missing, damaged, unsafe or meant for another runtime."""


class AudioError(Qwen3TTSError):
    """Audio that cannot be read, used as a reference, written or played."""


class DeviceError(Qwen3TTSError):
    """A device that this machine lacks, or that cannot compile or run a graph."""


class RequestError(Qwen3TTSError, ValueError):
    """A request that the loaded model cannot serve, or a parameter out of range."""


class Cancelled(Qwen3TTSError):
    """A request that its caller stopped."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def boundary(
    kind: type[Qwen3TTSError], what: str, reason: Callable[[Exception], str] = first_line, advice: str = ""
) -> Iterator[None]:
    """Around calls of a library: whatever they raise becomes a `kind` with the message "what: reason; advice".

    Everything is caught because hardly a library has one base for its exceptions. This package's own errors pass.
    """
    try:
        yield
    except Qwen3TTSError:
        raise
    except Exception as error:
        raise kind(f"{what}: {reason(error)}{f'; {advice}' if advice else ''}") from error
