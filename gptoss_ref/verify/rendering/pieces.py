"""A rendering as pieces: special tokens and the texts between them.

Prompts are compared as sequences of :class:`Mark` (a special token) and ``str`` (the text between
two of them). As one text, `<|end|>` in a user's message would look like the token; as token ids,
two tokenizations of the same text would look like a difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gptoss_ref.chat.tokenizer import Tokenizer


@dataclass(frozen=True)
class Mark:
    """A special token, without its brackets: ``Mark("start")`` is ``<|start|>``."""

    name: str

    def __str__(self) -> str:
        return f"<|{self.name}|>"


Piece = Mark | str
"""A special token, or a text."""

Pieces = tuple[Piece, ...]
"""A rendering."""

MARKS = ("start", "end", "message", "channel", "constrain", "return", "call")
OTHER_MARKS = ("startoftext", "endoftext", "im_start", "im_end")
_MARK = re.compile(rf"<\|({'|'.join((*MARKS, *OTHER_MARKS[:2]))})\|>")


def joined(pieces: Iterable[Piece]) -> Pieces:
    """The same rendering with neighbouring texts joined and empty ones left out."""
    out: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and out and isinstance(out[-1], str):
            out[-1] += piece
        elif piece != "":
            out.append(piece)
    return tuple(out)


def text_of(pieces: Iterable[Piece]) -> str:
    """The text, with special tokens spelt out."""
    return "".join(map(str, pieces))


def from_text(text: str) -> Pieces:
    """The pieces of a rendered text; every spelt special token counts as the token."""
    out: list[Piece] = []
    for number, part in enumerate(_MARK.split(text)):
        out.append(Mark(part) if number % 2 else part)
    return joined(out)


def from_ids(ids: Iterable[int], tokenizer: Tokenizer) -> Pieces:
    """The pieces of token ids. TokenError for an unknown id."""
    out: list[Piece] = []
    run: list[int] = []
    for token in ids:
        if tokenizer.is_special(token):
            out += [tokenizer.decode(run), Mark(tokenizer.decode([token])[2:-2])]
            run = []
        else:
            run.append(int(token))
    return joined([*out, tokenizer.decode(run)])


def to_ids(pieces: Sequence[Piece], tokenizer: Tokenizer) -> list[int]:
    """Token ids, each text encoded separately. TokenError for an unknown mark."""
    ids: list[int] = []
    for piece in pieces:
        if isinstance(piece, Mark):
            ids.append(tokenizer.special_id(piece.name))
        else:
            ids += tokenizer.encode(piece)
    return ids


def lines(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces, with texts split after each newline."""
    out: list[Piece] = []
    for piece in pieces:
        out += [piece] if isinstance(piece, Mark) else piece.splitlines(keepends=True)
    return out
