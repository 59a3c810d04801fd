"""Bugs in the choice and order of the messages that are rendered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from gptoss_ref.chat.messages import Message
from gptoss_ref.chat.render import drop_analysis
from gptoss_ref.verify.rendering.bug import bug
from gptoss_ref.verify.rendering.rules import Messages

History = Callable[[Messages], list[Message]]


def is_call(message: Message) -> bool:
    """Whether a message is a tool call of the assistant."""
    return message.role == "assistant" and message.recipient is not None


@bug(
    "history-of-openai-harmony",
    "history",
    "Analysis of earlier answers stays while a tool call is open: the prompt is longer than the "
    "one in docs/format.md.",
    "vllm-project/vllm#45048",
    form=True,
)
def _(right: History, messages: Messages) -> list[Message]:
    """Analysis is dropped by openai-harmony 0.0.8's rule: only if the latest message of the
    assistant is a final one, and only before the first final message."""
    return drop_analysis(messages, "openai-harmony")


@bug(
    "analysis-kept",
    "history",
    "Old analysis fills the context, and the model continues from it.",
    "vllm-project/vllm#45048",
)
def _(right: History, messages: Messages) -> list[Message]:
    """Analysis stays in the history after the final answer that it led to."""
    return list(messages)


@bug(
    "analysis-of-calls-kept",
    "history",
    "Old analysis fills the context: analysis before answers is dropped, but not before calls.",
    "huggingface/trl#5109",
)
def _(right: History, messages: Messages) -> list[Message]:
    """In an answered turn, the analysis that led to a call stays."""
    kept = right(messages)
    thoughts = [m for m, after in pairwise(messages) if m.channel == "analysis" and is_call(after)]
    return [m for m in messages if m in kept or m in thoughts]


@bug(
    "analysis-dropped-in-a-turn",
    "history",
    "The model forgets why it called a tool, and starts its analysis again after each result.",
    "vllm-project/vllm#27653 vllm-project/vllm#35907 ggml-org/llama.cpp#15181",
)
def _(right: History, messages: Messages) -> list[Message]:
    """All analysis is dropped, even that between a call and its result."""
    return [m for m in right(messages) if m.channel != "analysis" or m.role != "assistant"]


@bug(
    "preamble-lost",
    "history",
    "The model forgets what it told the user before it called a tool.",
)
def _(right: History, messages: Messages) -> list[Message]:
    """The text beside a tool call is dropped."""
    return [m for m in right(messages) if not is_preamble(m)]


def is_preamble(message: Message) -> bool:
    return (
        message.role == "assistant"
        and message.channel == "commentary"
        and message.recipient is None
    )


@bug(
    "preamble-dropped-as-analysis",
    "history",
    "Text for the user becomes analysis, and is dropped with it.",
    "huggingface/trl#5109",
)
def _(right: History, messages: Messages) -> list[Message]:
    """The text beside a tool call goes to the analysis channel, and is dropped with it."""
    return right([replace(m, channel="analysis") if is_preamble(m) else m for m in messages])


@bug(
    "second-call-lost",
    "history",
    "The result of the second call has no call.",
    "ggml-org/llama.cpp#19814 huggingface/trl#5109",
)
def _(right: History, messages: Messages) -> list[Message]:
    """If a message has several tool calls, only the first is rendered."""
    kept = right(messages)
    return [m for n, m in enumerate(kept) if not (is_call(m) and n and is_call(kept[n - 1]))]


@bug(
    "calls-lost",
    "history",
    "Results have no calls.",
    "waybarrios/vllm-mlx#581",
)
def _(right: History, messages: Messages) -> list[Message]:
    """Earlier tool calls are dropped from the history."""
    return [m for m in right(messages) if not is_call(m)]


@bug(
    "calls-as-text",
    "history",
    "The model copies the made-up notation, and stops calling tools.",
    "waybarrios/vllm-mlx#581",
)
def _(right: History, messages: Messages) -> list[Message]:
    """Earlier tool calls are written as text into an answer: `[Calling tool: f(…)]`."""

    def told(message: Message) -> Message:
        name = (message.recipient or "").removeprefix("functions.")
        return Message.assistant(f"[Calling tool: {name}({message.text})]")

    return [told(m) if is_call(m) else m for m in right(messages)]


@bug(
    "results-lost",
    "history",
    "The model calls the same tool again and again.",
)
def _(right: History, messages: Messages) -> list[Message]:
    """Tool results are dropped."""
    return [m for m in right(messages) if m.role != "tool"]


@bug(
    "messages-without-text-dropped",
    "history",
    "Empty results and answers are missing, and calls have no results.",
)
def _(right: History, messages: Messages) -> list[Message]:
    """A message whose text is empty is left out."""
    return [m for m in right(messages) if m.parts != ("",)]
