"""The rules of the renderer as separate functions, so that each can be replaced.

``SPECIFICATION`` holds the rules, which call :mod:`gptoss_ref.chat.render` and split its result at
the special tokens. A bug of the catalogue replaces one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from gptoss_ref.chat.messages import DeveloperContent, Message, SystemContent
from gptoss_ref.chat.render import developer_text, drop_analysis, render_message, system_text
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
    """The functions of a renderer.

    Attributes:
        history: chooses the messages that are rendered.
        system: renders the contents of a system message; its second argument says whether the
            conversation has functions.
        developer: renders the contents of a developer message.
        content: renders a text of a message.
        header: renders a message up to and including ``<|message|>``.
        stop: renders the end of a message; its second argument says whether it is the last one.
        prompt: renders the beginning of the message to generate, from its role.
        whole: changes the whole rendering at the end; it also gets all messages.
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
            messages: the conversation.
            next_role: role of the message that is opened at the end; None: none.
            training: whether a last answer of the assistant ends with ``<|return|>``.
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
