"""Bugs in the system and developer messages."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from gptoss_ref.chat.messages import DeveloperContent, Message, SystemContent
from gptoss_ref.verify.rendering.bug import bug
from gptoss_ref.verify.rendering.pieces import Mark, Piece
from gptoss_ref.verify.rendering.rules import Messages

History = Callable[[Messages], list[Message]]
System = Callable[[SystemContent, bool], str]
Developer = Callable[[DeveloperContent], str]

_CALLS = "\nCalls to these tools must go to the commentary channel: 'functions'."


def developer_content(message: Message) -> DeveloperContent | None:
    """The content of a developer message that has instructions or tools by name."""
    part = message.parts[0] if message.parts else None
    return part if isinstance(part, DeveloperContent) else None


# --- the system message ---------------------------------------------------------------------------


@bug(
    "system-message-missing",
    "history",
    "The channels, the effort and the date are missing; every training prompt had them.",
    "hiyouga/LlamaFactory#8875",
)
def _(right: History, messages: Messages) -> list[Message]:
    """There is no system message."""
    return [message for message in right(messages) if message.role != "system"]


@bug(
    "system-message-replaced",
    "history",
    "The instructions get the rank of the system message, and channels and effort are lost.",
    variants={"with the heading": {"heading": True}},
)
def _(right: History, messages: Messages, heading: bool = False) -> list[Message]:
    """The caller's instructions replace the model's system message."""
    kept = right(messages)
    told = next((m for m in kept if (c := developer_content(m)) and c.instructions), None)
    if told is None:
        return kept
    content = developer_content(told)
    assert content is not None
    text = ("# Instructions\n\n" if heading else "") + (content.instructions or "")
    out = [m for m in kept if m.role != "system"]
    at = out.index(told)
    out[at : at + 1] = [Message.system(text)] + (
        [Message.developer(replace(content, instructions=None))] if content.tools else []
    )
    return out


@bug(
    "instructions-in-system-message",
    "history",
    "The model ranks system above developer: the instructions get a rank that they never had in "
    "training, in a message in which training prompts had no instructions.",
    "vllm-project/vllm#44330 vllm-project/vllm#23386",
    variants={"at the end": {"at_end": True}},
)
def _(right: History, messages: Messages, at_end: bool = False) -> list[Message]:
    """The caller's instructions are merged into the system message, after its first sentence."""
    kept = right(messages)
    told = next((m for m in kept if (c := developer_content(m)) and c.instructions), None)
    system = next((m for m in kept if m.role == "system"), None)
    if told is None or system is None or not isinstance(system.parts[0], SystemContent):
        return kept
    content = developer_content(told)
    assert content is not None
    if at_end:
        merged = system.with_content([*system.parts, f"\n\n{content.instructions}"])
    else:
        identity = f"{system.parts[0].model_identity}\n{content.instructions}"
        merged = system.with_content(replace(system.parts[0], model_identity=identity))
    out = [merged if m is system else m for m in kept if m is not told]
    if content.tools:
        out.insert(1, Message.developer(replace(content, instructions=None)))
    return out


@bug(
    "identity-ignored",
    "system",
    "The model calls itself ChatGPT, whatever identity the caller gave.",
    "vllm-project/vllm#30247 vllm-project/vllm#23975 vllm-project/vllm#42003",
)
def _(right: System, content: SystemContent, functions: bool) -> str:
    """The model's identity is the default one, although the caller gave another."""
    return right(replace(content, model_identity=SystemContent().model_identity), functions)


@bug(
    "identity-missing",
    "system",
    "The prompt lacks a line that every training example had.",
)
def _(right: System, content: SystemContent, functions: bool) -> str:
    """The first sentence, which says who the model is, is missing."""
    return right(replace(content, model_identity=None), functions)


@bug(
    "cutoff-missing",
    "system",
    "The model does not know the date at which its knowledge ends.",
    "tenstorrent/tt-inference-server#4143",
)
def _(right: System, content: SystemContent, functions: bool) -> str:
    """The line "Knowledge cutoff" is missing."""
    return right(replace(content, knowledge_cutoff=None), functions)


@bug(
    "date-missing",
    "system",
    "The model guesses the year, usually that of its training. The format allows this: "
    "openai-harmony writes the line only if it gets a date.",
    "hiyouga/LlamaFactory#8875 tenstorrent/tt-inference-server#4143",
    form=True,
)
def _(right: System, content: SystemContent, functions: bool) -> str:
    """The line "Current date" is missing."""
    return right(replace(content, conversation_start_date=None), functions)


@bug(
    "effort-missing",
    "system",
    "The reasoning effort is undefined.",
    "tenstorrent/tt-inference-server#4143",
)
def _(right: System, content: SystemContent, functions: bool) -> str:
    """The line "Reasoning" is missing."""
    return right(replace(content, reasoning_effort=None), functions)


@bug(
    "effort-ignored",
    "system",
    "High effort has no effect, and low effort costs as much as medium.",
    "ollama/ollama#12589",
)
def _(right: System, content: SystemContent, functions: bool) -> str:
    """The effort is always medium, whatever the request asks for."""
    return right(replace(content, reasoning_effort="medium"), functions)


@bug(
    "effort-in-small-letters",
    "system",
    "The line is not the one that the model was trained on, and the model may ignore it.",
    "ggml-org/llama.cpp#15110",
)
def _(right: System, content: SystemContent, functions: bool) -> str:
    """The line reads "reasoning: …" instead of "Reasoning: …"."""
    return right(content, functions).replace("\nReasoning: ", "\nreasoning: ")


@bug(
    "effort-capitalised",
    "system",
    "The line is not the one that the model was trained on.",
)
def _(right: System, content: SystemContent, functions: bool) -> str:
    """The effort begins with a capital letter: "Reasoning: High"."""
    text = right(content, functions)
    return re.sub(r"\nReasoning: (\w)", lambda m: f"\nReasoning: {m[1].upper()}", text)


@bug(
    "channels-line-missing",
    "system",
    "The model leaves channels out of its headers, or writes its analysis into the answer.",
    "tenstorrent/tt-inference-server#4143",
)
def _(right: System, content: SystemContent, functions: bool) -> str:
    """The section "# Valid channels" is missing."""
    return right(replace(content, channels=()), functions)


@bug(
    "commentary-not-valid",
    "system",
    "Without the channel for tool calls, calls go to the wrong channel or are missing.",
    "vllm-project/vllm#23167 vllm-project/vllm#23386",
)
def _(right: System, content: SystemContent, functions: bool) -> str:
    """The list of valid channels lacks commentary."""
    kept = tuple(name for name in content.channels if name != "commentary")
    return right(replace(content, channels=kept), functions)


@bug(
    "channel-requirement-missing",
    "system",
    "The model leaves channels out of its headers more often.",
)
def _(right: System, content: SystemContent, functions: bool) -> str:
    """The sentence "Channel must be included for every message." is missing."""
    return right(replace(content, channel_required=False), functions)


@bug(
    "calls-sentence-missing",
    "system",
    "Calls go to the analysis channel, in which parsers do not expect them.",
)
def _(right: System, content: SystemContent, functions: bool) -> str:
    """The sentence on calls to functions is missing, although there are functions."""
    return right(content, False)


@bug(
    "calls-sentence-without-functions",
    "system",
    "The model looks for tools that it does not have, and calls them.",
    "ggml-org/llama.cpp#15110",
)
def _(right: System, content: SystemContent, functions: bool) -> str:
    """The sentence on calls to functions is there, although there are no functions."""
    text = right(content, functions)
    return text + _CALLS if content.channels and not functions else text


@bug(
    "blank-lines-missing",
    "system",
    "Sections are not separated, unlike in training prompts.",
)
def _(right: System, content: SystemContent, functions: bool) -> str:
    """There is no empty line between the sections of the system message."""
    return right(content, functions).replace("\n\n", "\n")


@bug(
    "built-in-tools-missing",
    "system",
    "The model cannot browse or run Python, or calls tools that the prompt does not describe.",
)
def _(right: System, content: SystemContent, functions: bool) -> str:
    """The built-in tools (browser, python) are missing from the system message."""
    return right(replace(content, tools=()), functions)


# --- the developer message ------------------------------------------------------------------------


@bug(
    "instructions-lost",
    "history",
    "The model never sees the caller's instructions.",
    "sgl-project/sglang#40082",
)
def _(right: History, messages: Messages) -> list[Message]:
    """The caller's instructions (the first system or developer message) are dropped."""
    out, seen = [], False
    for message in right(messages):
        content = developer_content(message)
        if content is None or seen or content.instructions is None:
            out.append(message)
        else:
            seen = True
            if content.tools:
                out.append(message.with_content(replace(content, instructions=None)))
    return out


@bug(
    "later-instructions-lost",
    "history",
    "The model never sees instructions that were added later in the conversation.",
    "raullenchai/Rapid-MLX#1765 lmstudio-ai/lmstudio-bug-tracker#2264",
)
def _(right: History, messages: Messages) -> list[Message]:
    """Only the first system or developer message of the caller is rendered."""
    kept = right(messages)
    told = [m for m in kept if m.role == "developer"]
    return [m for m in kept if m not in told[1:]]


@bug(
    "later-instructions-merged",
    "history",
    "Later instructions look as if they had been given at the beginning.",
    "raullenchai/Rapid-MLX#1769 lmstudio-ai/lmstudio-bug-tracker#2264",
    variants={"with one newline": {"between": "\n"}},
)
def _(right: History, messages: Messages, between: str = "\n\n") -> list[Message]:
    """Later system or developer messages are joined to the first one."""
    kept = right(messages)
    told = [m for m in kept if developer_content(m) is not None]
    if len(told) < 2:
        return kept
    texts = [c.instructions for m in told if (c := developer_content(m)) and c.instructions]
    first = developer_content(told[0])
    assert first is not None
    merged = told[0].with_content(replace(first, instructions=between.join(texts)))
    return [merged if m is told[0] else m for m in kept if m is told[0] or m not in told]


@bug(
    "instructions-heading-missing",
    "developer",
    "The model was trained on a section with a heading, and sees a text without it.",
)
def _(right: Developer, content: DeveloperContent) -> str:
    """The heading "# Instructions" is missing from the developer message."""
    return right(content).removeprefix("# Instructions\n\n")


@bug(
    "developer-message-as-system",
    "header",
    "The instructions get the rank of the system message.",
    "vllm-project/vllm#44330",
)
def _(right: Callable[[Message], list[Piece]], message: Message) -> list[Piece]:
    """The developer message has the role system."""
    pieces = right(message)
    return [Mark("start"), "system", *pieces[2:]] if message.role == "developer" else pieces


@bug(
    "empty-developer-message",
    "history",
    "An empty message takes the place of instructions and tools.",
    "vllm-project/vllm#44330",
)
def _(right: History, messages: Messages) -> list[Message]:
    """A developer message is rendered without instructions and without tools."""
    kept = right(messages)
    if any(m.role == "developer" for m in kept):
        return kept
    at = 1 if kept and kept[0].role == "system" else 0
    return [*kept[:at], Message.developer(DeveloperContent()), *kept[at:]]
