"""Bugs in the contents of messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from gptoss_ref.chat.messages import Message
from gptoss_ref.verify.rendering.bug import bug
from gptoss_ref.verify.rendering.bugs_history import is_call
from gptoss_ref.verify.rendering.pieces import Piece, from_text

Content = Callable[[Message, str], list[Piece]]


def _json(text: str, ascii_only: bool = False) -> str:
    return json.dumps(text, ensure_ascii=ascii_only)


@bug(
    "special-text-turned-special",
    "content",
    "A user, or a page that the model reads, can end the message and speak as the system.",
    "ggml-org/llama.cpp#17607 OWASP/AISVS#930 huggingface/transformers#47853",
    needs_ids=True,
)
def _(right: Content, message: Message, text: str) -> list[Piece]:
    """Text that spells a special token, such as `<|end|>` in a question, becomes that token."""
    out: list[Piece] = []
    for piece in right(message, text):
        out += from_text(piece) if isinstance(piece, str) else [piece]
    return out


@bug(
    "white-space-trimmed",
    "content",
    "Indented code and lists change; answers in the history differ from those that were given.",
    variants={"at the end only": {"end_only": True}},
)
def _(right: Content, message: Message, text: str, end_only: bool = False) -> list[Piece]:
    """White space at both ends of a message is cut off."""
    return right(message, text.rstrip() if end_only else text.strip())


@bug(
    "result-quoted",
    "content",
    "The model reads escaped JSON within JSON, and quotes it back.",
    "ggml-org/llama.cpp#19553 ggml-org/llama.cpp#19520",
    variants={"ASCII only": {"ascii_only": True}},
)
def _(right: Content, message: Message, text: str, ascii_only: bool = False) -> list[Piece]:
    """A tool's result is text, and is encoded as JSON again, with quotes and escapes."""
    return right(message, _json(text, ascii_only) if message.role == "tool" else text)


@bug(
    "arguments-quoted",
    "content",
    "The model reads escaped JSON within JSON, and writes its next call in the same way.",
    "ggml-org/llama.cpp#19553 ai-dynamo/dynamo#4161",
    variants={"ASCII only": {"ascii_only": True}},
)
def _(right: Content, message: Message, text: str, ascii_only: bool = False) -> list[Piece]:
    """A call's arguments are JSON, and are encoded as JSON again, with quotes and escapes."""
    return right(message, _json(text, ascii_only) if is_call(message) else text)


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


@bug(
    "arguments-rewritten",
    "content",
    "The history differs from what the model wrote: caches miss; no other effect is known.",
    form=True,
    variants={
        "ASCII only": {"options": {"ensure_ascii": True}},
        "keys sorted": {"options": {"sort_keys": True}},
        "without blanks": {"options": {"separators": (",", ":")}},
        "indented": {"options": {"indent": 2}},
    },
)
def _(
    right: Content, message: Message, text: str, options: dict[str, Any] | None = None
) -> list[Piece]:
    """A call's arguments are read and written again, with other white space or escapes."""
    value = _loads(text) if is_call(message) else None
    if isinstance(value, dict):
        text = json.dumps(value, **({"ensure_ascii": False} | (options or {})))
    return right(message, text)


@bug(
    "arguments-in-python",
    "content",
    "The model sees arguments that are not JSON, and writes such arguments itself.",
)
def _(right: Content, message: Message, text: str) -> list[Piece]:
    """A call's arguments are written as Python prints them, with single quotes."""
    value = _loads(text) if is_call(message) else None
    return right(message, repr(value) if isinstance(value, dict) else text)


@bug(
    "arguments-lost",
    "content",
    "The model does not see the arguments of its own call.",
)
def _(right: Content, message: Message, text: str) -> list[Piece]:
    """A call's arguments are missing."""
    return right(message, "{}" if is_call(message) else text)


@bug(
    "result-text-lost",
    "content",
    "The model sees that a tool answered, but not what.",
    "vllm-project/vllm#24954",
)
def _(right: Content, message: Message, text: str) -> list[Piece]:
    """A tool's result has no text."""
    return right(message, "" if message.role == "tool" else text)


@bug(
    "empty-text-as-none",
    "content",
    "The model reads the word None as the text of the message.",
    "InsForge/InsForge#1788",
    variants={"as null": {"word": "null"}},
)
def _(right: Content, message: Message, text: str, word: str = "None") -> list[Piece]:
    """A message without text has the word None as its text."""
    return right(message, text or word)
