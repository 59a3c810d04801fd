"""Parse the log-probabilities of a completions answer, in the two formats that servers use.

* OpenAI's completions, vLLM, llama-cpp-python: lists ``tokens``, ``token_logprobs`` and
  ``top_logprobs``, the last one mappings from a token's text, side by side.
* OpenAI's chat and llama.cpp's own server, also under completions: ``content``, a list of objects
  with ``token``, ``logprob``, ``top_logprobs``, and perhaps ``id`` and ``bytes``.

A text identifies a token only if no other token has the same text. Tokens that are parts of one
character are all shown as U+FFFD, or as an empty text.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from gptoss_ref.errors import EndpointError, TokenError

ID_DIGITS = 18
"""Largest number of digits of an id; more might not fit 64 bits."""


class Pieces(Protocol):
    """The part of a tokenizer that this module needs."""

    @property
    def vocab_size(self) -> int:
        """The largest id plus one."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token."""


@dataclass(frozen=True)
class Piece:
    """A token as the server writes it, with its log-probability if there is one."""

    text: str
    logprob: float | None
    id: int | None = None
    bytes: bytes | None = None


@dataclass(frozen=True)
class Entry:
    """One position of an answer: its token, and the likeliest tokens there."""

    chosen: Piece
    top: tuple[Piece, ...] = ()


class Texts:
    """Maps a server's token texts to ids."""

    def __init__(self, tokenizer: Pieces, vocab_size: int) -> None:
        self._by_bytes: dict[bytes, int] = {}
        by_text: defaultdict[str, set[int]] = defaultdict(set)
        for token in range(min(tokenizer.vocab_size, vocab_size)):
            try:
                raw = tokenizer.token_bytes(token)
            except TokenError:
                continue  # an id without a token
            self._by_bytes[raw] = token
            for errors in ("ignore", "replace"):
                by_text[raw.decode("utf-8", errors)].add(token)
        self._by_text = {text: next(iter(ids)) for text, ids in by_text.items() if len(ids) == 1}

    def likeliest(self, piece: Piece) -> int | None:
        """The id of a token of the answer; if several fit, the one with exactly this text.

        A server that drops incomplete characters writes the same text for a space and for a space
        with the first byte of an emoji. For generated tokens the former is chosen.
        """
        token = self.id(piece)
        raw = piece.text.encode("utf-8", "surrogatepass")
        return self._by_bytes.get(raw) if token is None else token

    def id(self, piece: Piece) -> int | None:
        """The id of a token; None if no token or several tokens have this text."""
        if piece.id is not None:
            return piece.id
        if piece.bytes is not None and piece.bytes in self._by_bytes:
            return self._by_bytes[piece.bytes]
        prefix, _, number = piece.text.partition(":")
        # vLLM's return_tokens_as_token_ids
        if prefix == "token_id" and number.isdecimal() and len(number) <= ID_DIGITS:
            return int(number)
        return self._by_text.get(piece.text)


@dataclass
class Reply:
    """A completions answer.

    Attributes:
        entries: in order; empty if there are no log-probabilities.
        prompt_tokens, completion_tokens: the server's counts; None if it gives none.
    """

    entries: list[Entry] = field(default_factory=list)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def parse(value: Any, url: str) -> Reply:
    """The first choice of an answer.

    Raises:
        EndpointError: it is not a completions answer, or its log-probabilities are in an unknown
            format.
    """
    try:
        choice = value["choices"][0]
        logprobs = choice.get("logprobs")
        usage = value.get("usage") or {}
        reply = Reply(
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
        )
    except (LookupError, TypeError, AttributeError):
        raise EndpointError(f"{url}: not a completions answer: it has no choices") from None
    try:
        if isinstance(logprobs, dict) and isinstance(logprobs.get("content"), list):
            reply.entries = [
                Entry(
                    _piece(item), tuple(_piece(other) for other in item.get("top_logprobs") or ())
                )
                for item in logprobs["content"]
            ]
        elif isinstance(logprobs, dict) and isinstance(logprobs.get("tokens"), list):
            reply.entries = list(_legacy(logprobs))
        elif logprobs:
            raise TypeError
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        raise EndpointError(
            f"{url}: the format of the log-probabilities is unknown: expected tokens with "
            "token_logprobs, or content"
        ) from None
    return reply


def _legacy(logprobs: dict[str, Any]) -> Iterable[Entry]:
    texts = logprobs["tokens"]
    chosen = logprobs.get("token_logprobs") or [None] * len(texts)
    tops = logprobs.get("top_logprobs") or [None] * len(texts)
    for text, logprob, top in zip(texts, chosen, tops, strict=True):
        if not isinstance(text, str):
            raise TypeError
        yield Entry(
            Piece(text, _number(logprob)),
            tuple(Piece(name, _number(number)) for name, number in (top or {}).items()),
        )


def _piece(item: dict[str, Any]) -> Piece:
    text, number, raw = item.get("token"), item.get("id"), item.get("bytes")
    if not isinstance(text, str) or not isinstance(raw, list | None):
        raise TypeError
    identity = _count(number)
    if identity is not None and abs(identity) >= 10**ID_DIGITS:
        raise ValueError
    return Piece(text, _number(item.get("logprob")), identity, bytes(raw) if raw else None)


def _number(value: Any) -> float | None:
    """A log-probability; None if the server gives none. A NaN is kept and reported later."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value) if not math.isinf(value) or value < 0 else math.nan


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
