"""The tokens for the page: visible texts, and the messages that they belong to."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from gptoss_ref.chat.parser import HarmonyParser, MessageEnd, MessageStart
from gptoss_ref.chat.tokenizer import HARMONY_TOKENS
from gptoss_ref.errors import TokenError

if TYPE_CHECKING:
    from gptoss_ref.chat.tokenizer import Tokenizer

_SIGNS = {"\n": "↵", "\r": "␍", "\t": "⇥"}


def token_text(raw: bytes) -> str:
    r"""A token's bytes as text; control and format characters and invalid UTF-8 as codes.

    A combining mark is shown on a dotted circle.

    >>> [token_text(raw) for raw in (b" a\n", b"\x07", b"\xf0\x9f", "\u202eabc".encode())]
    [' a↵', '\\x07', '\\xf0\\x9f', 'U+202Eabc']
    """
    text = "".join(map(_shown, raw.decode("utf-8", "backslashreplace")))
    return "◌" + text if text and unicodedata.combining(text[0]) else text


def _shown(c: str) -> str:
    if c in _SIGNS:
        return _SIGNS[c]
    if unicodedata.category(c) in ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"):
        return f"\\x{ord(c):02x}" if ord(c) < 256 else f"U+{ord(c):04X}"
    return c


def texts(ids: Iterable[int], tokenizer: Tokenizer | None) -> dict[str, str]:
    """The text of every id, or the id itself if there is no such token; keys are for JSON."""
    found = {}
    for number in sorted(set(map(int, ids))):
        try:
            found[str(number)] = (
                str(number) if tokenizer is None else token_text(tokenizer.token_bytes(number))
            )
        except TokenError:  # a row of the vocabulary that no token has
            found[str(number)] = str(number)
    return found


def messages(tokens: Sequence[int], tokenizer: Tokenizer | None) -> list[dict[str, Any]]:
    """The tokens as consecutive ranges, one for each message or text between messages.

    Each has ``begin`` and ``end``. A Harmony message also has ``body`` (where its text begins),
    ``role`` and, if its header has them, ``channel``, ``to`` and ``name``. Text outside messages
    has none of these.
    """
    if tokenizer is None or not _speaks_harmony(tokenizer):
        return [{"begin": 0, "end": len(tokens)}]
    start = tokenizer.special_id("start")
    parser = HarmonyParser(tokenizer, role=None)
    found: list[dict[str, Any]] = []
    begin = 0  # of the open range

    def close(end: int, **more: Any) -> None:
        nonlocal begin
        if end > begin:
            found.append({"begin": begin, "end": end, **more})
        begin = end

    opened: dict[str, Any] = {}  # the header of the open message
    for at, token in enumerate(tokens):
        try:
            events = parser.feed(token)
        except TokenError:  # an id without a token
            continue
        if token == start:
            close(at, **opened)
            opened = {}
        for event in events:
            if isinstance(event, MessageStart):
                opened = {"body": at + 1, **_header(event.header)}
            elif isinstance(event, MessageEnd) and opened:
                # an end token belongs to its message; a header that ends a message does not
                close(at + 1 if event.stop else at, **opened)
                opened = {}
    if not opened and begin < len(tokens) and tokens[begin] == start:  # an incomplete header
        role = tokenizer.decode(tokens[begin + 1 :]).partition("<|")[0]
        opened = {"body": len(tokens), "role": role}
    close(len(tokens), **opened)
    return found


def _header(header: Any) -> dict[str, Any]:
    said = {"channel": header.channel, "to": header.recipient, "name": header.name}
    return {"role": header.role, **{key: value for key, value in said.items() if value}}


def _speaks_harmony(tokenizer: Tokenizer) -> bool:
    return all(f"<|{name}|>" in tokenizer.special for name in HARMONY_TOKENS)
