"""Errors a user can cause. Each message names the thing that is wrong and what was expected."""


class GptOssError(ValueError):
    """Base of every error that bad input raises; at the command line one line and status 2."""


class ConfigError(GptOssError):
    """A configuration lacks a field, or a field contradicts another one or the tensors."""


class CheckpointError(GptOssError):
    """A checkpoint cannot be read: files, shards, tensors, shapes, dtypes or scale bytes."""


class TokenError(GptOssError):
    """Token ids that the model cannot take: none, out of range, or beyond its context."""


class HarmonyError(GptOssError):
    """A Harmony conversation or token stream that does not follow the format."""


class TraceError(GptOssError):
    """A trace that cannot be used: its names, shapes, tokens or file, or one that fits no other."""


class EndpointError(GptOssError):
    """A server that cannot be observed: down, slow, cut off, or answering something else."""
