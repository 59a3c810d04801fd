"""A model's answer: the texts of its channels, its tool calls, tokens and timings."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_ref.chat.messages import CHANNELS, Message, is_call, place_of
from gptoss_ref.chat.parser import Event, HarmonyParser, MessageEnd, MessageStart, Repair, TextDelta
from gptoss_ref.chat.tokenizer import Tokenizer


@dataclass(frozen=True)
class ToolCall:
    """A tool call of the assistant.

    Attributes:
        recipient: the tool, with its namespace: "functions.add".
        text: the arguments as the model wrote them.
        arguments: the same, parsed as JSON (RFC 8259); None if the text is not JSON.
        error: what is wrong with the arguments; None if they are a JSON object. Also an error: a
            duplicate key, a number beyond the range of float64, an unpaired surrogate.
        channel: the channel of the call, and of the tool's result.
    """

    recipient: str
    text: str
    arguments: Any
    error: str | None
    channel: str | None = "commentary"

    @property
    def name(self) -> str:
        """The tool without its namespace: "add". A tool's name may contain dots."""
        return self.recipient.partition(".")[2] or self.recipient

    def answer(self, result: Any) -> Message:
        """The message with the tool's result: a str unchanged, anything else as JSON."""
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        return Message.tool(self.recipient, text, self.channel)

    @classmethod
    def from_message(cls, message: Message) -> ToolCall:
        """The call in a message. It never raises: `error` says what is wrong with the arguments."""
        assert message.recipient is not None
        arguments, error = read_arguments(message.text)
        return cls(message.recipient, message.text, arguments, error, message.channel)


def read_arguments(text: str) -> tuple[Any, str | None]:
    """The arguments of a call, and the error in them or None; see ToolCall."""
    twice: list[str] = []

    def note_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        return dict(pairs)

    try:
        value = json.loads(
            text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=note_twice
        )
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return None, "not JSON: half a surrogate pair"
    except (ValueError, RecursionError) as problem:
        return None, f"not JSON: {problem}"
    if not isinstance(value, dict):
        return value, f"expected a JSON object, found {type(value).__name__}"
    return value, f"the key {twice[0]!r} is given twice" if twice else None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON value")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits[:40]} is beyond the range of float64")
    return value


@dataclass(frozen=True)
class Reply:
    """One answer, from the prompt to the token that ended it.

    Attributes:
        analysis: the model's reasoning.
        commentary: text beside the answer, for instance before a tool call.
        final: the answer; empty if the model called a tool or was cut short.
        tool_calls: calls that wait for a result, see :meth:`gptoss_ref.chat.ToolCall.answer`.
        messages: all messages of the answer, for the history. If the answer stops at another role,
            that role's message is not among them.
        tokens: the generated ids, including the stop token.
        logprobs: natural logarithm of each token's probability, before temperature and top-p.
        prompt_tokens: number of tokens in the prompt.
        cached_tokens: number of prompt tokens that were in the cache.
        first_seconds: time to the first token.
        seconds: time to the last token.
        stop_reason: "return" (answered), "call" (a tool), "length" (max_new_tokens or the context
            is used up), "endoftext", "other_role" (the model began a message of another role).
        repairs: violations of the format, with the text that is in none of the texts and calls
            above.

    Every generated token that is neither a control token nor part of a header is in exactly one of
    `analysis`, `commentary`, `final`, `tool_calls` and `repairs`. A message in an unknown channel
    is in the channel that the name means (messages.meant_channel), and a Repair reports it.
    """

    analysis: str
    commentary: str
    final: str
    tool_calls: tuple[ToolCall, ...]
    messages: tuple[Message, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt_tokens: int
    cached_tokens: int
    first_seconds: float
    seconds: float
    stop_reason: str
    repairs: tuple[Repair, ...] = ()

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second, including the time for the prompt."""
        return len(self.tokens) / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "analysis": self.analysis,
            "commentary": self.commentary,
            "final": self.final,
            "tool_calls": [
                {
                    "recipient": call.recipient,
                    "name": call.name,
                    "arguments": call.arguments,
                    "text": call.text,
                    "error": call.error,
                    "channel": call.channel,
                }
                for call in self.tool_calls
            ],
            "tokens": list(self.tokens),
            "logprobs": list(self.logprobs),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "stop_reason": self.stop_reason,
            "repairs": [str(repair) for repair in self.repairs],
        }


class Collector:
    """Reads an answer token by token, and collects the fields of a Reply.

    Args:
        tokenizer: the one that the ids belong to.
        stop_at_other_roles: end the answer if the model begins a message of another role. Its text
            is then in no event except a Repair.

    `stopped` is True if the answer ended there. `repairs` are those of the parser and of this
    class.
    """

    def __init__(self, tokenizer: Tokenizer, *, stop_at_other_roles: bool = True) -> None:
        self.stopped = False
        self.repairs: list[Repair] = []
        self._parser = HarmonyParser(tokenizer)
        self._stop_at_other_roles = stop_at_other_roles
        self._ends: list[MessageEnd] = []

    def feed(self, token: int) -> list[Event]:
        """Read one token; returns its events in order."""
        return self._collect(self._parser.feed(token), cut=False)

    def finish(self) -> list[Event]:
        """End the answer; returns the last events."""
        return self._collect(self._parser.finish(), cut=True)

    def fields(self) -> dict[str, Any]:
        """The first five attributes of a Reply, and its `repairs`."""
        said = tuple(end.message for end in self._ends)
        return {
            "analysis": channel_text(said, "analysis"),
            "commentary": channel_text(said, "commentary"),
            "final": channel_text(said, "final"),
            "tool_calls": tool_calls(self._ends),
            "messages": said,
            "repairs": tuple(self.repairs),
        }

    def _collect(self, events: list[Event], *, cut: bool) -> list[Event]:
        collected: list[Event] = []
        for event in events:
            hidden = False
            match event:
                case Repair():
                    self.repairs.append(event)
                case MessageStart(header) | TextDelta(header, _):
                    hidden = header.role != "assistant" and self._stop_at_other_roles
                    self.stopped |= hidden
                case MessageEnd(message, stop):
                    hidden = message.role != "assistant" and self._stop_at_other_roles
                    if not cut and stop is None:  # the next message began: it is complete
                        event = MessageEnd(message, "end")
                    if not hidden:
                        self._ends.append(event)
                    collected += self._repairs(event, self._parser.position - (not cut))
            collected += [] if hidden else [event]
        return collected

    def _repairs(self, end: MessageEnd, position: int) -> list[Event]:
        """Reports for a message of another role, one cut short, or one in an unknown channel."""
        message = end.message
        repairs: list[Repair] = []

        def report(problem: str, action: str, text: str = "") -> None:
            repairs.append(Repair(position, problem, action, text))

        if message.role != "assistant":
            action = "the answer ends before it" if self.stopped else "no part of the answer"
            name = f" {message.name}" if message.name else ""
            report(f"a message of the role {message.role}{name}", action, message.text)
        elif is_call(message) and end.stop is None:
            problem = f"the end of the tokens in a call of {message.recipient}"
            report(problem, "left out of the calls", message.text)
        elif not is_call(message) and message.channel not in (None, *CHANNELS):
            report(f"a message in the channel {message.channel!r}", f"read as {place_of(message)}")
        elif not is_call(message) and message.channel is None and message.content_type in CHANNELS:
            report(f"no <|channel|> before {message.content_type!r}", "read as the channel")
        self.repairs += repairs
        return list(repairs)


def channel_text(messages: Sequence[Message], channel: str) -> str:
    """The assistant's text in a channel, with an empty line between messages.

    A message without a channel belongs to `final`; see messages.place_of for other names.
    """
    return "\n\n".join(
        message.text
        for message in messages
        if message.text and message.role == "assistant"
        if not is_call(message) and place_of(message) == channel
    )


def tool_calls(ends: Sequence[MessageEnd]) -> tuple[ToolCall, ...]:
    """The tool calls among the messages, without a call that was cut short."""
    return tuple(
        ToolCall.from_message(end.message)
        for end in ends
        if end.stop is not None and is_call(end.message)
    )
