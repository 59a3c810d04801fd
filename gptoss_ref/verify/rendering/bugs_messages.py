"""Bugs in the messages of the conversation: history, headers, contents, ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from gptoss_ref.chat.messages import Message, SystemContent
from gptoss_ref.chat.render import CONSTRAIN, drop_analysis
from gptoss_ref.verify.rendering.bug import bug
from gptoss_ref.verify.rendering.pieces import Mark, Piece, Pieces, from_text, text_of
from gptoss_ref.verify.rendering.rules import Messages

History = Callable[[Messages], list[Message]]
Header = Callable[[Message], list[Piece]]
Content = Callable[[Message, str], list[Piece]]
Stop = Callable[[Message, bool], list[Piece]]
Prompt = Callable[[str], list[Piece]]
Whole = Callable[[Pieces, Messages], Sequence[Piece]]


def is_call(message: Message) -> bool:
    """Whether a message is the assistant's call of a tool."""
    return message.role == "assistant" and message.recipient is not None


def _json(text: str, ascii_only: bool = False) -> str:
    return json.dumps(text, ensure_ascii=ascii_only)


# --- history --------------------------------------------------------------------------------------


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
    return [m for m in right(messages) if not _is_preamble(m)]


def _is_preamble(message: Message) -> bool:
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
    return right([replace(m, channel="analysis") if _is_preamble(m) else m for m in messages])


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


# --- headers --------------------------------------------------------------------------------------


@bug(
    "preamble-as-analysis",
    "header",
    "What the user was told becomes a thought.",
    "huggingface/trl#5109 thinking-machines-lab/tinker-cookbook#949",
    variants={"as final": {"to": "final"}},
)
def _(right: Header, message: Message, to: str = "analysis") -> list[Piece]:
    """The text beside a tool call goes to the analysis channel, not to commentary."""
    return right(replace(message, channel=to) if _is_preamble(message) else message)


@bug(
    "recipient-after-channel",
    "header",
    "None that is known: models write it so themselves, openai-harmony renders it before.",
    "openai/harmony#49 openai/harmony#81 vllm-project/vllm#51020",
    form=True,
)
def _(right: Header, message: Message) -> list[Piece]:
    """A call's recipient stands behind the channel and not before it."""
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
    "None that is known: the released chat template writes it so, models write the token.",
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
    "Calls in the history lack the format that the model is to write.",
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
    "A header that models do write, but no training prompt held.",
)
def _(right: Header, message: Message) -> list[Piece]:
    """There is no blank before `<|constrain|>`."""
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
    """A call is addressed to `f` and not to `functions.f`."""
    recipient = message.recipient or ""
    if not is_call(message) or not recipient.startswith("functions."):
        return right(message)
    return right(replace(message, recipient=prefix + recipient.removeprefix("functions.")))


@bug(
    "call-without-recipient",
    "header",
    "A call in the history is talk: nobody is called.",
)
def _(right: Header, message: Message) -> list[Piece]:
    """A call's header does not say whom it is for."""
    return right(replace(message, recipient=None)) if is_call(message) else right(message)


@bug(
    "call-on-the-analysis-channel",
    "header",
    "Calls to functions belong to commentary; parsers look for them there.",
)
def _(right: Header, message: Message) -> list[Piece]:
    """Calls to functions stand on the analysis channel."""
    if is_call(message) and message.channel == "commentary":
        return right(replace(message, channel="analysis"))
    return right(message)


@bug(
    "result-without-name",
    "header",
    "The model does not know which tool answers.",
    "thinking-machines-lab/tinker-cookbook#249 vllm-project/vllm#24954",
    variants={
        "functions. with nothing behind it": {"name": "functions."},
        "the bare name of the function": {"bare": True},
    },
)
def _(right: Header, message: Message, name: str = "tool", bare: bool = False) -> list[Piece]:
    """A tool's result has the role `tool` where the tool's name belongs."""
    if message.role != "tool":
        return right(message)
    own = (message.name or "").removeprefix("functions.")
    return right(replace(message, name=own if bare else name))


@bug(
    "result-as-user",
    "header",
    "The tool's words are taken for the user's.",
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
    "The header is one that no training prompt had.",
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
    "A header within a header: the model takes the role for a text.",
)
def _(right: Header, message: Message) -> list[Piece]:
    """Messages of the assistant begin with `<|start|>assistant` twice."""
    out = right(message)
    return [*out[:1], "assistant", *out] if message.role == "assistant" else out


# --- contents -------------------------------------------------------------------------------------


@bug(
    "special-text-turned-special",
    "content",
    "Whoever writes to the model, or whose page it reads, can end the message and speak as the "
    "system.",
    "ggml-org/llama.cpp#17607 OWASP/AISVS#930 huggingface/transformers#47853",
    needs_ids=True,
)
def _(right: Content, message: Message, text: str) -> list[Piece]:
    """Text that spells a special token, such as `<|end|>` in a question, becomes that token."""
    out: list[Piece] = []
    for piece in right(message, text):
        out += from_text(piece) if isinstance(piece, str) else [piece]
    return out


@bug(
    "white-space-trimmed",
    "content",
    "Indented code and lists change; an answer in the history is not the one that was given.",
    variants={"at the end only": {"end_only": True}},
)
def _(right: Content, message: Message, text: str, end_only: bool = False) -> list[Piece]:
    """White space at both ends of a message is cut off."""
    return right(message, text.rstrip() if end_only else text.strip())


@bug(
    "result-quoted",
    "content",
    "The model reads escaped JSON within JSON, and quotes it back.",
    "ggml-org/llama.cpp#19553 ggml-org/llama.cpp#19520",
    variants={"ASCII only": {"ascii_only": True}},
)
def _(right: Content, message: Message, text: str, ascii_only: bool = False) -> list[Piece]:
    """A tool's result, a text, is written as JSON once more: in quotes, with escapes."""
    return right(message, _json(text, ascii_only) if message.role == "tool" else text)


@bug(
    "arguments-quoted",
    "content",
    "The model reads escaped JSON within JSON, and writes its next call so.",
    "ggml-org/llama.cpp#19553 ai-dynamo/dynamo#4161",
    variants={"ASCII only": {"ascii_only": True}},
)
def _(right: Content, message: Message, text: str, ascii_only: bool = False) -> list[Piece]:
    """A call's arguments, a JSON text, are written as JSON once more: in quotes, with escapes."""
    return right(message, _json(text, ascii_only) if is_call(message) else text)


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


@bug(
    "arguments-rewritten",
    "content",
    "What stands in the history is not what the model wrote: caches miss, nothing else is known.",
    form=True,
    variants={
        "ASCII only": {"options": {"ensure_ascii": True}},
        "keys sorted": {"options": {"sort_keys": True}},
        "without blanks": {"options": {"separators": (",", ":")}},
        "indented": {"options": {"indent": 2}},
    },
)
def _(
    right: Content, message: Message, text: str, options: dict[str, Any] | None = None
) -> list[Piece]:
    """A call's arguments are read and written again, with other blanks or escapes."""
    value = _loads(text) if is_call(message) else None
    if isinstance(value, dict):
        text = json.dumps(value, **({"ensure_ascii": False} | (options or {})))
    return right(message, text)


@bug(
    "arguments-in-python",
    "content",
    "The model is shown what is no JSON, and writes it.",
)
def _(right: Content, message: Message, text: str) -> list[Piece]:
    """A call's arguments are written as Python prints them, with single quotes."""
    value = _loads(text) if is_call(message) else None
    return right(message, repr(value) if isinstance(value, dict) else text)


@bug(
    "arguments-lost",
    "content",
    "The model does not see what it asked for.",
)
def _(right: Content, message: Message, text: str) -> list[Piece]:
    """A call's arguments are missing."""
    return right(message, "{}" if is_call(message) else text)


@bug(
    "result-text-lost",
    "content",
    "The model sees that a tool answered, but not what.",
    "vllm-project/vllm#24954",
)
def _(right: Content, message: Message, text: str) -> list[Piece]:
    """A tool's result has no text."""
    return right(message, "" if message.role == "tool" else text)


@bug(
    "empty-text-as-none",
    "content",
    "The model reads the word None as what was said.",
    "InsForge/InsForge#1788",
    variants={"as null": {"word": "null"}},
)
def _(right: Content, message: Message, text: str, word: str = "None") -> list[Piece]:
    """A message without a text holds the word None."""
    return right(message, text or word)


# --- ends -----------------------------------------------------------------------------------------


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
    "The next message begins within the one before.",
    "ggml-org/llama.cpp#15110",
    variants={"of the assistant's messages": {"role": "assistant"}},
)
def _(right: Stop, message: Message, is_last: bool, role: str = "") -> list[Piece]:
    """Messages do not end with `<|end|>`."""
    return right(message, is_last) if role and message.role != role else []


@bug(
    "call-ended-by-end",
    "stop",
    "The model learns to end calls with `<|end|>`, where servers do not stop.",
)
def _(right: Stop, message: Message, is_last: bool) -> list[Piece]:
    """Calls end with `<|end|>` and not with `<|call|>`."""
    return [Mark("end")] if is_call(message) else right(message, is_last)


@bug(
    "newline-between-messages",
    "stop",
    "A token between messages that no training prompt had.",
)
def _(right: Stop, message: Message, is_last: bool) -> list[Piece]:
    """There is a newline between messages."""
    return [*right(message, is_last), "\n"]


# --- the whole ------------------------------------------------------------------------------------


@bug(
    "generation-prompt-missing",
    "prompt",
    "The model is free to go on as the user, and often does.",
)
def _(right: Prompt, role: str) -> list[Piece]:
    """`<|start|>assistant` is missing at the end of the prompt."""
    return []


@bug(
    "generation-prompt-with-channel",
    "prompt",
    "The model can no longer choose: it does not think, or cannot call a tool.",
    variants={
        "analysis": {"channel": "analysis"},
        "with no message mark": {"marked": False},
        "an empty analysis before it": {"thought": True},
    },
)
def _(
    right: Prompt, role: str, channel: str = "final", marked: bool = True, thought: bool = False
) -> list[Piece]:
    """The prompt goes on behind `<|start|>assistant`, with a channel."""
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
    "The model is opened a message within a header.",
)
def _(right: Prompt, role: str) -> list[Piece]:
    """`<|start|>assistant` stands twice at the end of the prompt."""
    return [*right(role), *right(role)]


@bug(
    "bos-added",
    "whole",
    "No training prompt began with it.",
    "nobodywho-ooo/nobodywho#739",
    variants={"<|endoftext|>": {"name": "endoftext"}},
)
def _(
    right: Whole, pieces: Pieces, messages: Messages, name: str = "startoftext"
) -> Sequence[Piece]:
    """A token that marks the beginning, `<|startoftext|>`, was put before the prompt."""
    return [Mark(name), *right(pieces, messages)]


@bug(
    "newline-at-the-end",
    "whole",
    "The model goes on behind a newline, where a header never has one.",
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
