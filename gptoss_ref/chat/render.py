"""Harmony renderer: messages to tokens.

    <|start|>{role}[:{name}][ to={recipient}][<|channel|>{channel}][ {content type}]
    <|message|>{content}<|end|>

(in one line). The parts of the header are encoded one by one, and special tokens are inserted by
id, so no text in a message can end it. A tool's header begins with its name instead of a role.
`<|call|>` ends an assistant's message to a tool, `<|end|>` any other. A sampled answer ends with
`<|return|>`; in history this becomes `<|end|>`, and only a training example keeps it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import Literal

from gptoss_ref.chat.messages import (
    Content,
    DeveloperContent,
    Message,
    SystemContent,
    is_call,
    meant_channel,
)
from gptoss_ref.chat.tokenizer import Tokenizer
from gptoss_ref.chat.tools import tools_section
from gptoss_ref.errors import HarmonyError

CONSTRAIN = "<|constrain|>"

HistoryRule = Literal["openai-harmony", "answered", "keep"]
"""Rule for the analysis messages of earlier turns; see :func:`drop_analysis`."""


def drop_analysis(
    messages: Sequence[Message], rule: HistoryRule = "openai-harmony"
) -> list[Message]:
    """The messages of a history without the assistant's `analysis` that the rule drops.

    "answered"
        drops analysis before a final message: the reasoning behind earlier answers. Analysis after
        the last answer stays, so a model that waits for a tool's result still knows why it called.
        A tool's result is kept if its call is, in whichever channels they are.
        This is the rule in openai/harmony's docs/format.md, and the one that `respond` uses.
    "openai-harmony"
        the rule of that package (0.0.8): if the assistant's latest message is a final one, it drops
        the analysis before the *first* final message. The two rules differ from the second answer
        on.
    "keep"
        drops nothing.

    Raises:
        HarmonyError: an unknown rule.
    """
    if rule == "keep":
        return list(messages)
    if rule == "openai-harmony":
        finals = [i for i, message in enumerate(messages) if message.channel == "final"]
        said = [message for message in messages if message.role == "assistant"]
        before = finals[0] if said and said[-1].channel == "final" else 0
        return [m for i, m in enumerate(messages) if i >= before or m.channel != "analysis"]
    if rule == "answered":
        return _drop_answered(messages)
    raise HarmonyError(f"history rule {rule!r}: expected 'openai-harmony', 'answered' or 'keep'")


def _drop_answered(messages: Sequence[Message]) -> list[Message]:
    """The rule "answered". A tool's result is dropped if the call that it answers is."""
    meant = [message.channel and meant_channel(message.channel) for message in messages]
    answers = [i for i, m in enumerate(messages) if m.role == "assistant" and meant[i] == "final"]
    before = answers[-1] if answers else 0
    kept = [i >= before or channel != "analysis" for i, channel in enumerate(meant)]
    waiting: dict[str, deque[int]] = defaultdict(deque)  # calls without a result, by tool
    for i, message in enumerate(messages):
        if is_call(message):
            waiting[str(message.recipient)].append(i)
        elif message.role == "tool" and waiting[str(message.name)]:
            kept[i] = kept[waiting[str(message.name)].popleft()]
    return [message for message, keep in zip(messages, kept, strict=True) if keep]


def render_conversation(
    messages: Iterable[Message],
    tokenizer: Tokenizer,
    next_role: str | None = "assistant",
    *,
    history: HistoryRule = "openai-harmony",
) -> list[int]:
    """Tokens of a conversation, followed by `<|start|>` and `next_role` (None: by nothing).

    The default is the prompt for an answer: `…<|end|><|start|>assistant`.
    """
    everything = list(messages)
    has_functions = has_function_tools(everything)
    tokens: list[int] = []
    for message in drop_analysis(everything, history):
        tokens += render_message(message, tokenizer, has_function_tools=has_functions)
    if next_role is not None:
        tokens += [tokenizer.special_id("start"), *tokenizer.encode(next_role)]
    return tokens


def render_conversation_for_training(
    messages: Iterable[Message],
    tokenizer: Tokenizer,
    *,
    history: HistoryRule = "openai-harmony",
) -> list[int]:
    """Tokens of a whole conversation as a training example.

    Like `render_conversation` with no next role, but if the last message is an answer in the final
    channel, it ends with `<|return|>`.
    """
    everything = list(messages)
    tokens = render_conversation(everything, tokenizer, None, history=history)
    if everything and everything[-1].role == "assistant" and everything[-1].channel == "final":
        tokens[-1] = tokenizer.special_id("return")
    return tokens


def render_message(
    message: Message, tokenizer: Tokenizer, *, has_function_tools: bool = False
) -> list[int]:
    """Tokens of one message; the system message has one more line if there are functions."""
    special, encode = tokenizer.special_id, tokenizer.encode
    tokens = [special("start")]
    if message.role == "tool":
        tokens += encode(message.name or "")
    else:
        tokens += encode(message.role)
        if message.name is not None:
            tokens += encode(f":{message.name}")
    if message.recipient not in (None, "all"):
        tokens += encode(f" to={message.recipient}")
    if message.channel is not None:
        tokens += [special("channel"), *encode(message.channel)]
    if message.content_type is not None:
        tokens += _content_type(message.content_type, tokenizer)
    tokens.append(special("message"))
    for part in message.parts:
        tokens += encode(_content(part, has_function_tools))
    is_call = message.role == "assistant" and message.recipient is not None
    tokens.append(special("call" if is_call else "end"))
    return tokens


def _content_type(content_type: str, tokenizer: Tokenizer) -> list[int]:
    """Tokens of a content type, with `<|constrain|>` as a special token and not as text."""
    if not content_type.startswith(CONSTRAIN):
        return tokenizer.encode(f" {content_type}")
    rest = content_type.removeprefix(CONSTRAIN)
    return [*tokenizer.encode(" "), tokenizer.special_id("constrain"), *tokenizer.encode(rest)]


def has_function_tools(messages: Iterable[Message]) -> bool:
    """Whether a developer message has functions; if so, the system message names their channel."""
    return any(
        space.name == "functions" and space.tools
        for message in messages
        for part in message.parts
        if isinstance(part, DeveloperContent)
        for space in part.tools
    )


def _content(part: Content, has_function_tools: bool) -> str:
    if isinstance(part, SystemContent):
        return system_text(part, has_function_tools)
    if isinstance(part, DeveloperContent):
        return developer_text(part)
    return part


def system_text(system: SystemContent, has_function_tools: bool) -> str:
    """The text of a system message: the sections that are set, an empty line between them."""
    top = [
        (system.model_identity, "{}"),
        (system.knowledge_cutoff, "Knowledge cutoff: {}"),
        (system.conversation_start_date, "Current date: {}"),
    ]
    sections = ["\n".join(form.format(value) for value, form in top if value is not None)]
    if all(value is None for value, _ in top):
        sections.clear()
    if system.reasoning_effort is not None:
        sections.append(f"Reasoning: {system.reasoning_effort}")
    if system.tools:
        sections.append(tools_section(system.tools))
    if system.channels:
        text = f"# Valid channels: {', '.join(system.channels)}."
        if system.channel_required:
            text += " Channel must be included for every message."
        if has_function_tools:
            text += "\nCalls to these tools must go to the commentary channel: 'functions'."
        sections.append(text)
    return "\n\n".join(sections)


def developer_text(developer: DeveloperContent) -> str:
    """The text of a developer message: instructions under a heading, then the tools."""
    sections = []
    if developer.instructions is not None:
        sections += ["# Instructions", developer.instructions]
    if developer.tools:
        sections.append(tools_section(developer.tools))
    return "\n\n".join(sections)
