"""The rules of the renderer, one by one, so that each can be replaced.

``SPECIFICATION`` holds the rules of :mod:`gptoss_ref.chat.render`, cut at the special tokens;
nothing is written a second time here. A bug of the catalogue exchanges one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from gptoss_ref.chat.messages import DeveloperContent, Message, SystemContent
from gptoss_ref.chat.render import (
    developer_text,
    drop_analysis,
    render_message,
    system_text,
)
from gptoss_ref.chat.tokenizer import o200k_harmony
from gptoss_ref.verify.rendering.pieces import Mark, Piece, Pieces, from_ids, joined

Messages = Sequence[Message]


def _history(messages: Messages) -> list[Message]:
    return drop_analysis(messages, "answered")


def _content(message: Message, text: str) -> list[Piece]:
    return [text]


def _rendered(message: Message) -> Pieces:
    """A message without its content."""
    return _without_content(replace(message, content=()))


@cache
def _without_content(message: Message) -> Pieces:
    tokenizer = o200k_harmony()
    return from_ids(render_message(message, tokenizer), tokenizer)


def _header(message: Message) -> list[Piece]:
    return list(_rendered(message)[:-1])


def _stop(message: Message, is_last: bool) -> list[Piece]:
    return [_rendered(message)[-1]]


def _prompt(role: str) -> list[Piece]:
    return [Mark("start"), role]


def _whole(pieces: Pieces, messages: Messages) -> Sequence[Piece]:
    return pieces


@dataclass(frozen=True)
class Rules:
    """What a renderer does.

    Attributes:
        history: which messages are rendered, of all there are.
        system: the text of a system message, and whether the conversation has functions.
        developer: the text of a developer message.
        content: what a text of a message becomes.
        header: a message up to and with ``<|message|>``.
        stop: what ends a message, and whether it is the last.
        prompt: what opens the message to be generated, of its role.
        whole: the rendering in the end, and all the messages.
    """

    history: Callable[[Messages], list[Message]] = _history
    system: Callable[[SystemContent, bool], str] = system_text
    developer: Callable[[DeveloperContent], str] = developer_text
    content: Callable[[Message, str], list[Piece]] = _content
    header: Callable[[Message], list[Piece]] = _header
    stop: Callable[[Message, bool], list[Piece]] = _stop
    prompt: Callable[[str], list[Piece]] = _prompt
    whole: Callable[[Pieces, Messages], Sequence[Piece]] = _whole

    def render(
        self, messages: Messages, next_role: str | None = "assistant", *, training: bool = False
    ) -> Pieces:
        """The rendering of a conversation.

        Args:
            messages: all of it.
            next_role: whose message is opened at the end; None: nobody's.
            training: whether a last answer of the assistant keeps its ``<|return|>``.
        """
        functions = any(
            space.name == "functions" and space.tools
            for message in messages
            for part in message.parts
            if isinstance(part, DeveloperContent)
            for space in part.tools
        )
        kept = self.history(messages)
        out: list[Piece] = []
        for number, message in enumerate(kept):
            is_last = number == len(kept) - 1
            out += self.header(message)
            for part in message.parts:
                if isinstance(part, SystemContent):
                    out.append(self.system(part, functions))
                elif isinstance(part, DeveloperContent):
                    out.append(self.developer(part))
                else:
                    out += self.content(message, part)
            said = is_last and message.role == "assistant" and message.channel == "final"
            out += [Mark("return")] if training and said else self.stop(message, is_last)
        if next_role is not None and not training:
            out += self.prompt(next_role)
        return joined(self.whole(joined(out), messages))


SPECIFICATION = Rules()
