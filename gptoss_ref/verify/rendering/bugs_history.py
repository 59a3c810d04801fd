"""Bugs in which messages of the conversation are rendered, and in what order."""

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
    """Whether a message is the assistant's call of a tool."""
    return message.role == "assistant" and message.recipient is not None


@bug(
    "history-of-openai-harmony",
    "history",
    "Thoughts behind earlier answers stay while a tool call is open: a longer prompt, unlike the "
    "one that docs/format.md describes.",
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
    "Old thoughts fill the context, and the model goes on from them.",
    "vllm-project/vllm#45048",
)
def _(right: History, messages: Messages) -> list[Message]:
    """Analysis stays in the history after the final answer that it led to."""
    return list(messages)


@bug(
    "analysis-of-calls-kept",
    "history",
    "Old thoughts fill the context; those behind the answers are dropped, those behind calls not.",
    "huggingface/trl#5109",
)
def _(right: History, messages: Messages) -> list[Message]:
    """Of a turn that is answered, the analysis that led to a call stays."""
    kept = right(messages)
    thoughts = [m for m, after in pairwise(messages) if m.channel == "analysis" and is_call(after)]
    return [m for m in messages if m in kept or m in thoughts]


@bug(
    "analysis-dropped-in-a-turn",
    "history",
    "The model forgets why it called a tool, and begins to think anew after each result.",
    "vllm-project/vllm#27653 vllm-project/vllm#35907 ggml-org/llama.cpp#15181",
)
def _(right: History, messages: Messages) -> list[Message]:
    """All analysis is dropped, even that between a call and its result."""
    return [m for m in right(messages) if m.channel != "analysis" or m.role != "assistant"]


@bug(
    "preamble-lost",
    "history",
    "What the model told the user before it called a tool is forgotten.",
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
    "What the user was told becomes a thought, and is dropped with the thoughts.",
    "huggingface/trl#5109",
)
def _(right: History, messages: Messages) -> list[Message]:
    """The text beside a tool call goes to the analysis channel, and is dropped as such."""
    return right([replace(m, channel="analysis") if is_preamble(m) else m for m in messages])


@bug(
    "second-call-lost",
    "history",
    "The result of the second call answers a question that nobody asked.",
    "ggml-org/llama.cpp#19814 huggingface/trl#5109",
)
def _(right: History, messages: Messages) -> list[Message]:
    """Of several tool calls of one message only the first is rendered."""
    kept = right(messages)
    return [m for n, m in enumerate(kept) if not (is_call(m) and n and is_call(kept[n - 1]))]


@bug(
    "calls-lost",
    "history",
    "Results stand there without their calls.",
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
    "Empty results and answers vanish, and calls stand without results.",
)
def _(right: History, messages: Messages) -> list[Message]:
    """A message whose text is empty is left out."""
    return [m for m in right(messages) if m.parts != ("",)]
