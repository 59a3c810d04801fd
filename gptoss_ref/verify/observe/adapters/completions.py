"""What a completions answer says about tokens: both ways in which servers write log-probabilities.

* OpenAI's completions, vLLM, llama-cpp-python: lists ``tokens``, ``token_logprobs`` and
  ``top_logprobs``, the last one mappings from a token's text, side by side.
* OpenAI's chat and llama.cpp's own server, also under completions: ``content``, a list of objects
  with ``token``, ``logprob``, ``top_logprobs``, and perhaps ``id`` and ``bytes``.

A text names a token only if no other token has it: the pieces of a character that is split over
several tokens all read as U+FFFD, or as nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from gptoss_ref.errors import EndpointError, TokenError

ID_DIGITS = 18
"""The longest number that is taken for an id: what is longer may not fit 64 bits."""


class Pieces(Protocol):
    """What is needed of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token."""


@dataclass(frozen=True)
class Piece:
    """One token as a server names it, with its log-probability if it gave one."""

    text: str
    logprob: float | None
    id: int | None = None
    bytes: bytes | None = None


@dataclass(frozen=True)
class Entry:
    """One place of an answer: the token there, and the likeliest tokens of that place."""

    chosen: Piece
    top: tuple[Piece, ...] = ()


class Texts:
    """From a server's names of tokens back to ids."""

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
        """The id of a token that is there: its whole text rather than another's beginning.

        A server that drops incomplete characters writes a blank both for a blank and for a blank
        with the first byte of an emoji; of what was generated, take the former.
        """
        token = self.id(piece)
        raw = piece.text.encode("utf-8", "surrogatepass")
        return self._by_bytes.get(raw) if token is None else token

    def id(self, piece: Piece) -> int | None:
        """The id of a token; None if its name could mean several, or nothing."""
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
        prompt_tokens, completion_tokens: as the server counts them; None if it does not.
    """

    entries: list[Entry] = field(default_factory=list)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def parse(value: Any, url: str) -> Reply:
    """The first choice of an answer.

    Raises:
        EndpointError: it is no completions answer, or its log-probabilities have no known form.
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
        raise EndpointError(f"{url}: no completions answer: it has no choices") from None
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
            f"{url}: the log-probabilities have no known form: expected tokens with "
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
    """A log-probability; None where the server gives none. A NaN is kept, and complained of."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value) if not math.isinf(value) or value < 0 else math.nan


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
