"""The errors that callers can catch. Every message is one line: what is wrong, where, what to do."""


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
