"""Streaming Harmony parser: tokens to messages, one token at a time.

    parser = HarmonyParser(tokenizer)
    for token in tokens:
        for event in parser.feed(token):
            ...                            # MessageStart, TextDelta, MessageEnd, Repair
    parser.finish()                        # end a message that is still open

Text is emitted as soon as its characters are complete: a character split over tokens waits for its
last byte, and bytes that are not valid UTF-8 become U+FFFD (openai/harmony pull 83).

Models do not always follow the format (openai/harmony issues 38 and 60, pull 82). With
`strict=True` the first violation raises HarmonyError with its position and what was expected.
Otherwise the parser continues with the likeliest reading, and a Repair reports the violation:

- a header that breaks the format: header.py chooses a reading;
- no `<|message|>` before the message ends: unfinished.py finds where the text begins;
- no `<|start|>` before a header: it begins at the `<|channel|>`;
- text between two messages: it is left out, or is a message if it has an end token;
- no end before `<|start|>`, `<|channel|>` or `<|endoftext|>`: the message ends there;
- other special tokens in a text: they stay in it, spelt out.

No text is lost: every token except control tokens is in a field of a header, in a message's text,
or in the `text` of a Repair.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from gptoss_ref.chat.header import Header, names_a_role, parse_header
from gptoss_ref.chat.messages import ROLES, Message
from gptoss_ref.chat.tokenizer import Tokenizer
from gptoss_ref.chat.unfinished import parse_unfinished
from gptoss_ref.errors import HarmonyError


@dataclass(frozen=True)
class MessageStart:
    """A header is complete: role, name, recipient, channel and content type are in `header`."""

    header: Header


@dataclass(frozen=True)
class TextDelta:
    """The next piece of a message's text; never empty."""

    header: Header
    text: str


@dataclass(frozen=True)
class MessageEnd:
    """A message is complete. `stop` is the token that ended it: "end", "return" or "call".

    `stop` is None if the next message began without an end token, or the tokens ended.
    """

    message: Message
    stop: str | None


@dataclass(frozen=True)
class Repair:
    """A violation of the format at the token `position` (from 0), and how the parser handled it.

    `text` is the text of the model that no message holds.
    """

    position: int
    problem: str
    action: str
    text: str = ""

    def __str__(self) -> str:
        return f"token {self.position}: {self.problem}: {self.action}" + (
            f": {self.text!r}" if self.text else ""
        )


Event = MessageStart | TextDelta | MessageEnd | Repair
"""The events of a parser."""


class _State(Enum):
    EXPECT_START = "expect start"
    HEADER = "header"
    CONTENT = "content"


class HarmonyParser:
    """Reads one stream of tokens.

    Args:
        tokenizer: the one that the ids belong to.
        role: the role of the first message, if the tokens begin after it, as a completion begins
            after `<|start|>assistant`. None: the tokens begin with `<|start|>`.
        strict: raise HarmonyError at the first token that does not follow the format.

    Raises:
        HarmonyError: an unknown role.

    `messages` holds the complete messages, `repairs` the repairs, `position` the number of tokens
    read. `header` and `text` belong to the open message; `header` is None if no message is open.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, role: str | None = "assistant", strict: bool = False
    ) -> None:
        if role == "tool" or role not in (None, *ROLES):
            raise HarmonyError(
                f"parser for the role {role!r}: expected system, developer, user, assistant or None"
            )
        self.messages: list[Message] = []
        self.repairs: list[Repair] = []
        self.header: Header | None = None
        self.position = 0
        self._tokenizer = tokenizer
        self._strict = strict
        self._stops = {tokenizer.special_id(name): name for name in ("end", "return", "call")}
        self._start = tokenizer.special_id("start")
        self._message = tokenizer.special_id("message")
        self._channel = tokenizer.special_id("channel")
        self._constrain = tokenizer.special_id("constrain")
        self._end_of_text = tokenizer.special.get("<|endoftext|>")
        self._ends = {*self._stops, self._end_of_text}
        self._events: list[Event] = []
        self._skipped: list[int] = []  # between messages
        self._skipped_text = False  # whether the skipped tokens include text
        self._text: list[str] = []
        self._role = role
        self._sections: list[list[int]] = [[]]
        self._state = _State.EXPECT_START if role is None else _State.HEADER

    @property
    def text(self) -> str:
        """The text so far of the open message."""
        return "".join(self._text)

    def feed(self, token: int) -> list[Event]:
        """Read one token; returns its events in order.

        Raises TokenError for an unknown id and, if strict, HarmonyError.
        """
        self._tokenizer.token_bytes(token)
        handle = {
            _State.EXPECT_START: self._in_between,
            _State.HEADER: self._in_header,
            _State.CONTENT: self._in_content,
        }[self._state]
        handle(int(token))
        self.position += 1
        return self._take_events()

    def finish(self) -> list[Event]:
        """End the open message, because there are no more tokens. Call it once.

        An unfinished text becomes a message, and so does text in an unfinished header, whose rest
        is left out. If strict, HarmonyError for an unfinished header.
        """
        if self._state is _State.CONTENT:
            self._end(None)
        elif self._state is _State.HEADER and self.position > 0:
            self._end_unfinished("the end of the tokens", None, cut=True)
        elif self._skipped_text:
            self._take_skipped("the end of the tokens", None, cut=True)
        elif self._skipped:
            self._report_skipped()
        return self._take_events()

    # --- the three states ---------------------------------------------------------------------

    def _in_between(self, token: int) -> None:
        """After a message: `<|start|>` opens the next one."""
        if token == self._start:
            if self._skipped:
                self._report_skipped()
            self._open_header(None)
        elif token in (self._channel, self._message):
            self._report(f"{self._name(token)}, expected <|start|>", "read as part of a header")
            if self._skipped_text and not names_a_role(self._tokenizer.decode(self._skipped)):
                self._report_skipped()
            self._open_header(None)
            self._sections = [self._forget_skipped()]
            self._in_header(token)
        elif token in self._ends and self._skipped_text:
            self._take_skipped(self._name(token), self._stops.get(token))
        else:
            if self._strict:
                self._report(f"{self._name(token)}, expected <|start|>", "")
            self._skipped.append(token)
            if token not in self._ends:
                self._skipped_text |= bool(self._tokenizer.token_bytes(token).strip())

    def _in_header(self, token: int) -> None:
        """Before `<|message|>`: collect the tokens, split at `<|channel|>`."""
        if token == self._message:
            sections = [self._decode(section) for section in self._sections]
            self._open_content(parse_header(sections, self._role, self._report))
        elif token == self._channel:
            self._sections.append([])
        elif token == self._start:
            if any(self._sections):
                self._end_unfinished("<|start|>", None)
            else:
                self._report("<|start|> in a header, expected a role", "the header begins again")
            self._open_header(None)
        elif token in self._stops:
            self._end_unfinished(f"<|{self._stops[token]}|>", self._stops[token])
        elif token == self._end_of_text:
            self._end_unfinished(self._name(token), None)
        elif self._tokenizer.is_special(token) and token != self._constrain:
            name = self._tokenizer.decode([token])
            problem = f"{self._name(token)} in a header, expected <|message|>"
            self._report(problem, "left out", name)
        else:
            self._sections[-1].append(token)

    def _in_content(self, token: int) -> None:
        """Before the end of the message: emit text in whole characters."""
        assert self.header is not None
        if token in self._stops:
            self._end(self._stops[token])
        elif token == self._end_of_text:
            self._report(f"{self._name(token)} in a text, expected <|end|>", "the message ends")
            self._end(None)
        elif token in (self._start, self._channel):
            self._report(f"{self._name(token)} in a text, expected <|end|>", "the message ends")
            role = self.header.role if token == self._channel else None
            self._end(None)
            self._open_header(role if role != "tool" else None)
            if token == self._channel:
                self._in_header(token)
        else:
            if self._tokenizer.is_special(token):
                self._report(f"{self._name(token)} in a text, expected <|end|>", "kept as text")
            self._add_text(self._utf8.decode(self._tokenizer.token_bytes(token)))

    # --- steps --------------------------------------------------------------------------------

    def _open_header(self, role: str | None) -> None:
        self._role, self._sections, self._state = role, [[]], _State.HEADER

    def _open_content(self, header: Header) -> None:
        self.header, self._state = header, _State.CONTENT
        self._text.clear()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._events.append(MessageStart(header))

    def _add_text(self, text: str) -> None:
        assert self.header is not None
        if text:
            self._text.append(text)
            self._events.append(TextDelta(self.header, text))

    def _end(self, stop: str | None) -> None:
        """End the open text; an incomplete character at its end becomes U+FFFD."""
        assert self.header is not None
        self._add_text(self._utf8.decode(b"", final=True))
        message = self.header.message(self.text)
        self.messages.append(message)
        self._events.append(MessageEnd(message, stop))
        self.header, self._state = None, _State.EXPECT_START
        self._text.clear()

    def _end_unfinished(self, what: str, stop: str | None, *, cut: bool = False) -> None:
        """End a header without `<|message|>`; it becomes a message if it holds text or a call."""
        sections = [self._decode(section) for section in self._sections]
        departures: list[tuple[str, str, str]] = []
        header, text = parse_unfinished(
            sections, self._role, lambda *report: departures.append(report), cut=cut
        )
        problem = f"{what} in a header, expected <|message|>"
        self._state = _State.EXPECT_START
        if text or (header.recipient and not cut):
            self._report(problem, "the text begins after the header's fields")
            for departure in departures:
                self._report(*departure)
            self._open_content(header)
            self._add_text(text)
            self._end(stop)
        else:
            self._report(problem, "left out, it has no text", " ".join(filter(None, sections)))

    def _take_skipped(self, what: str, stop: str | None, *, cut: bool = False) -> None:
        """Make a message without a header from text between messages that has an end token."""
        self._open_header(None)
        self._sections = [self._forget_skipped()]
        self._end_unfinished(what, stop, cut=cut)

    # --- reports ------------------------------------------------------------------------------

    def _report(self, problem: str, action: str, text: str = "") -> None:
        if self._strict:
            raise HarmonyError(f"token {self.position}: {problem}")
        repair = Repair(self.position, problem, action, text)
        self.repairs.append(repair)
        self._events.append(repair)

    def _report_skipped(self) -> None:
        problem = f"{self._tokenizer.decode(self._skipped)!r}, expected <|start|>"
        self._report(problem, "skipped", self._decode(self._forget_skipped()))

    def _forget_skipped(self) -> list[int]:
        """Clear the skipped tokens; returns those that do not end a message."""
        skipped = [token for token in self._skipped if token not in self._ends]
        self._skipped, self._skipped_text = [], False
        return skipped

    def _decode(self, tokens: list[int]) -> str:
        data = self._tokenizer.decode_bytes(tokens)
        try:
            return data.decode()
        except UnicodeDecodeError:
            self._report(f"{data!r}, expected UTF-8", "the invalid bytes become U+FFFD")
            return data.decode(errors="replace")

    def _name(self, token: int) -> str:
        return f"{self._tokenizer.decode([token])!r} (id {token})"

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events


def parse(
    tokens: Iterable[int],
    tokenizer: Tokenizer,
    *,
    role: str | None = "assistant",
    strict: bool = False,
) -> list[Message]:
    """The messages in a sequence of tokens; arguments and errors as for HarmonyParser.

    For a rendered conversation, which begins with `<|start|>`, give role=None.
    """
    parser = HarmonyParser(tokenizer, role=role, strict=strict)
    for token in tokens:
        parser.feed(token)
    parser.finish()
    return parser.messages
