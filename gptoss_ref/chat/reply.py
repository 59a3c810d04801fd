"""What a model answered: the texts of its channels, its tool calls, and how it went."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_ref.chat.messages import Message
from gptoss_ref.chat.parser import MessageEnd, Repair

# Recipients that are not tools: a message to one of these is talk.
_NOT_TOOLS = ("all", "assistant", "user")


@dataclass(frozen=True)
class ToolCall:
    """The assistant's message to a tool.

    Attributes:
        recipient: the tool, with its namespace: "functions.add".
        text: the arguments as written.
        arguments: the same, parsed as JSON; None if the text is not JSON.
        error: why the text is not a JSON object, or None if it is one.
    """

    recipient: str
    text: str
    arguments: Any
    error: str | None

    @property
    def name(self) -> str:
        """The tool without its namespace: "add". A tool's own name may have dots."""
        return self.recipient.partition(".")[2] or self.recipient

    def answer(self, result: Any) -> Message:
        """The message that hands the tool's result back: a text as it is, other things as JSON."""
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        return Message.tool(self.recipient, text)

    @classmethod
    def from_message(cls, message: Message) -> ToolCall:
        """The call in a message. Never fails: what is wrong with the arguments is in `error`."""
        assert message.recipient is not None
        arguments, error = None, None
        try:
            arguments = json.loads(message.text)
            if not isinstance(arguments, dict):
                error = f"expected a JSON object, found {type(arguments).__name__}"
        except (ValueError, RecursionError) as problem:
            error = f"not JSON: {problem}"
        return cls(message.recipient, message.text, arguments, error)


@dataclass(frozen=True)
class Reply:
    """One answer, from the prompt to the token that ended it.

    Attributes:
        analysis: what the model thought.
        commentary: what it said beside the answer, such as before a tool call.
        final: the answer; empty if it called a tool or was cut short.
        tool_calls: calls that wait for a result, see :meth:`gptoss_ref.chat.ToolCall.answer`.
        messages: all of it, as messages to put into the history.
        tokens: the generated ids, the stop token included.
        logprobs: natural logarithm of each token's probability, before temperature and the like.
        prompt_tokens: length of the prompt.
        cached_tokens: how much of the prompt was in the cache.
        first_seconds: until the first token.
        seconds: until the last.
        stop_reason: "return" (answered), "call" (a tool), "length" (max_new_tokens or the context
            is used up), "endoftext".
        repairs: where the tokens did not follow the format.
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
        """Generated tokens per second, with the time the prompt took."""
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
            "repairs": [f"token {r.position}: {r.problem}: {r.action}" for r in self.repairs],
        }


def channel_text(messages: Sequence[Message], channel: str) -> str:
    """The talk in a channel, messages apart by an empty line. Without a channel it is `final`."""
    return "\n\n".join(
        message.text
        for message in messages
        if message.recipient in (None, *_NOT_TOOLS) and (message.channel or "final") == channel
    )


def tool_calls(ends: Sequence[MessageEnd]) -> tuple[ToolCall, ...]:
    """The calls among the messages. One that was cut short is none."""
    return tuple(
        ToolCall.from_message(end.message)
        for end in ends
        if end.stop is not None
        and end.message.role == "assistant"
        and end.message.recipient not in (None, *_NOT_TOOLS)
    )
