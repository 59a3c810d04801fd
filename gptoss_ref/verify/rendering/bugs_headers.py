"""Bugs in the headers of messages: role, recipient, channel and content type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gptoss_ref.chat.messages import Message
from gptoss_ref.chat.render import CONSTRAIN
from gptoss_ref.verify.rendering.bug import bug
from gptoss_ref.verify.rendering.bugs_history import is_call, is_preamble
from gptoss_ref.verify.rendering.pieces import Mark, Piece

Header = Callable[[Message], list[Piece]]


@bug(
    "preamble-as-analysis",
    "header",
    "Text for the user becomes analysis.",
    "huggingface/trl#5109 thinking-machines-lab/tinker-cookbook#949",
    variants={"as final": {"to": "final"}},
)
def _(right: Header, message: Message, to: str = "analysis") -> list[Piece]:
    """The text beside a tool call goes to the analysis channel instead of commentary."""
    return right(replace(message, channel=to) if is_preamble(message) else message)


@bug(
    "recipient-after-channel",
    "header",
    "No effect is known: models write it this way; openai-harmony renders it before the channel.",
    "openai/harmony#49 openai/harmony#81 vllm-project/vllm#51020",
    form=True,
)
def _(right: Header, message: Message) -> list[Piece]:
    """A call's recipient is after the channel instead of before it."""
    if not is_call(message) or message.channel is None:
        return right(message)
    moved = right(replace(message, recipient=None))
    at = moved.index(Mark("channel")) + 1
    rest = str(moved[at]).removeprefix(message.channel)
    moved[at] = f"{message.channel} to={message.recipient}{rest}"
    return moved


@bug(
    "constrain-missing",
    "header",
    "No effect is known: the released chat template writes it this way; models write the token.",
    "vllm-project/vllm#28729",
    form=True,
)
def _(right: Header, message: Message) -> list[Piece]:
    """A call's format is written ` json`, without `<|constrain|>`."""
    kind = message.content_type
    return right(replace(message, content_type=kind and kind.removeprefix(CONSTRAIN)))


@bug(
    "content-type-missing",
    "header",
    "Calls in the history lack the format that the model should write.",
)
def _(right: Header, message: Message) -> list[Piece]:
    """A call's format is missing from its header."""
    return right(replace(message, content_type=None))


@bug(
    "constrain-as-text",
    "header",
    "The model sees eight ordinary tokens for one special token, and copies them: the next call is "
    "not parsed.",
    "openai/harmony#27 openai/harmony#47",
    needs_ids=True,
)
def _(right: Header, message: Message) -> list[Piece]:
    """`<|constrain|>` in a header is encoded as text."""
    return [str(piece) if piece == Mark("constrain") else piece for piece in right(message)]


@bug(
    "blank-before-constrain-missing",
    "header",
    "Models write such headers, but no training prompt had one.",
)
def _(right: Header, message: Message) -> list[Piece]:
    """There is no space before `<|constrain|>`."""
    out = right(message)
    if Mark("constrain") in out:
        at = out.index(Mark("constrain")) - 1
        out[at] = str(out[at]).rstrip(" ")
    return out


@bug(
    "recipient-without-namespace",
    "header",
    "The model learns to leave the namespace out, and its calls are not recognised.",
    variants={"function. for functions.": {"prefix": "function."}},
)
def _(right: Header, message: Message, prefix: str = "") -> list[Piece]:
    """A call is addressed to `f` instead of `functions.f`."""
    recipient = message.recipient or ""
    if not is_call(message) or not recipient.startswith("functions."):
        return right(message)
    return right(replace(message, recipient=prefix + recipient.removeprefix("functions.")))


@bug(
    "call-without-recipient",
    "header",
    "A call in the history looks like text: no tool is called.",
)
def _(right: Header, message: Message) -> list[Piece]:
    """A call's header has no recipient."""
    return right(replace(message, recipient=None)) if is_call(message) else right(message)


@bug(
    "call-on-the-analysis-channel",
    "header",
    "Calls to functions belong to commentary; parsers look for them there.",
)
def _(right: Header, message: Message) -> list[Piece]:
    """Calls to functions are in the analysis channel."""
    if is_call(message) and message.channel == "commentary":
        return right(replace(message, channel="analysis"))
    return right(message)


@bug(
    "result-without-name",
    "header",
    "The model does not know which tool answers.",
    "thinking-machines-lab/tinker-cookbook#249 vllm-project/vllm#24954",
    variants={
        "functions. with nothing after it": {"name": "functions."},
        "the bare name of the function": {"bare": True},
    },
)
def _(right: Header, message: Message, name: str = "tool", bare: bool = False) -> list[Piece]:
    """A tool's result has the role `tool` instead of the tool's name."""
    if message.role != "tool":
        return right(message)
    own = (message.name or "").removeprefix("functions.")
    return right(replace(message, name=own if bare else name))


@bug(
    "result-as-user",
    "header",
    "The model reads the tool's result as a message of the user.",
)
def _(right: Header, message: Message) -> list[Piece]:
    """A tool's result is rendered as a message of the user."""
    return right(Message.user("")) if message.role == "tool" else right(message)


@bug(
    "result-without-recipient",
    "header",
    "The model does not see that the result is for it.",
)
def _(right: Header, message: Message) -> list[Piece]:
    """A tool's result lacks ` to=assistant`."""
    return right(replace(message, recipient=None)) if message.role == "tool" else right(message)


@bug(
    "result-without-channel",
    "header",
    "No training prompt had such a header.",
)
def _(right: Header, message: Message) -> list[Piece]:
    """A tool's result lacks its channel."""
    return right(replace(message, channel=None)) if message.role == "tool" else right(message)


@bug(
    "final-without-channel",
    "header",
    "The model learns from its own history to leave channels out.",
)
def _(right: Header, message: Message) -> list[Piece]:
    """Earlier answers lack `<|channel|>final`."""
    return right(replace(message, channel=None)) if message.channel == "final" else right(message)


@bug(
    "message-mark-before-channel",
    "header",
    "The channel is part of the text, and the model writes such headers itself.",
    "ggml-org/llama.cpp#15110",
)
def _(right: Header, message: Message) -> list[Piece]:
    """Headers of the assistant read `<|start|>assistant<|message|><|channel|>…<|message|>`."""
    out = right(message)
    if message.role == "assistant" and Mark("channel") in out:
        out.insert(out.index(Mark("channel")), Mark("message"))
    return out


@bug(
    "start-doubled",
    "header",
    "The header contains another header: the model reads the role as text.",
)
def _(right: Header, message: Message) -> list[Piece]:
    """Messages of the assistant begin with `<|start|>assistant` twice."""
    out = right(message)
    return [*out[:1], "assistant", *out] if message.role == "assistant" else out
