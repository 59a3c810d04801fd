"""Bugs at the ends of messages, in the prompt for the reply, and in the whole rendering."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gptoss_ref.chat.messages import Message, SystemContent
from gptoss_ref.verify.rendering.bug import bug
from gptoss_ref.verify.rendering.bugs_history import is_call
from gptoss_ref.verify.rendering.pieces import Mark, Piece, Pieces, text_of
from gptoss_ref.verify.rendering.rules import Messages

Stop = Callable[[Message, bool], list[Piece]]
Prompt = Callable[[str], list[Piece]]
Whole = Callable[[Pieces, Messages], Sequence[Piece]]


@bug(
    "return-in-history",
    "stop",
    "The model sees the token that ends generation in the middle of a conversation.",
    "openai/harmony#57 OpenGVLab/InternVL#1165 unslothai/unsloth#3437 ggml-org/llama.cpp#15417",
)
def _(right: Stop, message: Message, is_last: bool) -> list[Piece]:
    """Earlier final answers end with `<|return|>` and not with `<|end|>`."""
    final = message.role == "assistant" and message.channel == "final"
    return [Mark("return")] if final else right(message, is_last)


@bug(
    "end-missing",
    "stop",
    "The next message begins within the previous one.",
    "ggml-org/llama.cpp#15110",
    variants={"of the assistant's messages": {"role": "assistant"}},
)
def _(right: Stop, message: Message, is_last: bool, role: str = "") -> list[Piece]:
    """Messages do not end with `<|end|>`."""
    return right(message, is_last) if role and message.role != role else []


@bug(
    "call-ended-by-end",
    "stop",
    "The model learns to end calls with `<|end|>`, but servers do not stop at that token.",
)
def _(right: Stop, message: Message, is_last: bool) -> list[Piece]:
    """Calls end with `<|end|>` instead of `<|call|>`."""
    return [Mark("end")] if is_call(message) else right(message, is_last)


@bug(
    "newline-between-messages",
    "stop",
    "No training prompt had a token between messages.",
)
def _(right: Stop, message: Message, is_last: bool) -> list[Piece]:
    """There is a newline between messages."""
    return [*right(message, is_last), "\n"]


@bug(
    "generation-prompt-missing",
    "prompt",
    "The model may continue as the user, and often does.",
)
def _(right: Prompt, role: str) -> list[Piece]:
    """`<|start|>assistant` is missing at the end of the prompt."""
    return []


@bug(
    "generation-prompt-with-channel",
    "prompt",
    "The model can no longer choose the channel: it skips the analysis, or cannot call a tool.",
    variants={
        "analysis": {"channel": "analysis"},
        "with no message mark": {"marked": False},
        "an empty analysis before it": {"thought": True},
    },
)
def _(
    right: Prompt, role: str, channel: str = "final", marked: bool = True, thought: bool = False
) -> list[Piece]:
    """The prompt continues after `<|start|>assistant`, with a channel."""
    opened: list[Piece] = [Mark("channel"), channel, *([Mark("message")] if marked else [])]
    empty: list[Piece] = [Mark("channel"), "analysis", Mark("message"), Mark("end")]
    return [*right(role), *([*empty, *right(role)] if thought else []), *opened]


@bug(
    "generation-prompt-with-message-mark",
    "prompt",
    "The model cannot choose a channel any more.",
)
def _(right: Prompt, role: str) -> list[Piece]:
    """The prompt ends with `<|start|>assistant<|message|>`."""
    return [*right(role), Mark("message")]


@bug(
    "generation-prompt-doubled",
    "prompt",
    "A message begins within a header.",
)
def _(right: Prompt, role: str) -> list[Piece]:
    """`<|start|>assistant` occurs twice at the end of the prompt."""
    return [*right(role), *right(role)]


@bug(
    "bos-added",
    "whole",
    "No training prompt began with this token.",
    "nobodywho-ooo/nobodywho#739",
    variants={"<|endoftext|>": {"name": "endoftext"}},
)
def _(
    right: Whole, pieces: Pieces, messages: Messages, name: str = "startoftext"
) -> Sequence[Piece]:
    """The prompt begins with a beginning-of-text token, `<|startoftext|>`."""
    return [Mark(name), *right(pieces, messages)]


@bug(
    "newline-at-the-end",
    "whole",
    "The model continues after a newline, but headers have none.",
)
def _(right: Whole, pieces: Pieces, messages: Messages) -> Sequence[Piece]:
    """The prompt ends with a newline."""
    return [*right(pieces, messages), "\n"]


@bug(
    "chatml",
    "whole",
    "The model sees a format that it was not trained on, and writes nonsense.",
    "ikawrakow/ik_llama.cpp#693",
)
def _(right: Whole, pieces: Pieces, messages: Messages) -> Sequence[Piece]:
    """The conversation is rendered as ChatML (`<|im_start|>`): a server's fall-back."""
    out = []
    for message in messages:
        parts = [part for part in message.parts if not isinstance(part, SystemContent)]
        texts = [p if isinstance(p, str) else (p.instructions or "") for p in parts]
        role = {"developer": "system"}.get(message.role, message.role)
        if parts and message.channel != "analysis" and not is_call(message):
            out.append(f"<|im_start|>{role}\n{''.join(texts)}<|im_end|>\n")
    opened = pieces[-2:] == (Mark("start"), "assistant")
    return ["".join(out) + ("<|im_start|>assistant\n" if opened else "")]


@bug(
    "special-tokens-lost",
    "whole",
    "Roles and channels run into the texts: `analysisWe need …`.",
)
def _(right: Whole, pieces: Pieces, messages: Messages) -> Sequence[Piece]:
    """The special tokens are missing: decoded with skip_special_tokens, or encoded without them."""
    return [piece for piece in right(pieces, messages) if isinstance(piece, str)]


@bug(
    "special-tokens-as-text",
    "whole",
    "The model sees `<`, `|`, `start` and so on: about six tokens for each special one.",
    needs_ids=True,
)
def _(right: Whole, pieces: Pieces, messages: Messages) -> Sequence[Piece]:
    """All special tokens of the template were encoded as text."""
    return [text_of(right(pieces, messages))]
