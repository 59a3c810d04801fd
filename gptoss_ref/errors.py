"""Errors that bad input raises. Each message names the cause and what was expected."""


class GptOssError(ValueError):
    """Base class of all errors that bad input raises; at the command line: one line, status 2."""


class ConfigError(GptOssError):
    """A configuration lacks a field, or a field contradicts another one or the tensors."""


class CheckpointError(GptOssError):
    """A checkpoint cannot be read: files, shards, tensors, shapes, dtypes or scale bytes."""


class TokenError(GptOssError):
    """Invalid token ids: none, out of range, or more than the context holds."""


class HarmonyError(GptOssError):
    """A Harmony conversation or token stream that does not follow the format."""


class TraceError(GptOssError):
    """A trace that cannot be used: bad names, shapes, tokens or file, or two that do not match."""


class EndpointError(GptOssError):
    """A server that is down, too slow, cut off, or gives an unexpected answer."""
