"""Conversations as JSON, in the format of chat APIs or in Harmony's format.

*chat* is the format of ``/v1/chat/completions``: an object with ``messages`` and ``tools``, or a
list of messages. Its system and developer messages become the developer's instructions in Harmony,
and the system message is the default one. *harmony* is the format of openai-harmony: messages with
channel, recipient and content type, which are rendered unchanged. A conversation is in Harmony's
format if one of its messages has a field that only Harmony has; ``"format": "chat"`` or
``"harmony"`` states the format.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptoss_ref.chat.messages import MODEL_IDENTITY, DeveloperContent, Message, SystemContent
from gptoss_ref.chat.tool_data import tool_from_dict
from gptoss_ref.chat.tools import ToolNamespace, browser, python
from gptoss_ref.errors import HarmonyError

MAX_BYTES = 16 << 20
"""Largest size of a conversation's file in bytes."""

_HARMONY_KEYS = {"channel", "recipient", "content_type"}
_CHAT_KEYS = {
    *("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning"),
    *("thinking", "refusal", "annotations", "audio", "function_call"),
}
_TOP_KEYS = {
    *("messages", "tools", "reasoning_effort", "model_identity", "builtin_tools", "date"),
    *("format", "id", "title", "model", "conversation_start_date"),
    # fields of a request that prompts leave out
    *("temperature", "top_p", "seed", "n", "stop", "stream", "stream_options", "user", "store"),
    *("max_tokens", "max_completion_tokens", "presence_penalty", "frequency_penalty"),
    *("logit_bias", "logprobs", "top_logprobs", "parallel_tool_calls"),
}
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Conversation:
    """A conversation, ready to be rendered.

    Attributes:
        messages: the Harmony messages.
        chat: the conversation in the format of chat APIs; None if it is in Harmony's format.
        date: the date in the system message; None: for a chat, any date is accepted.
        title: a description for reports.
    """

    messages: tuple[Message, ...]
    chat: Mapping[str, Any] | None = None
    date: str | None = None
    title: str = "conversation"

    def on(self, date: str | None) -> tuple[Message, ...]:
        """The messages with this date in the system message, unless it has a date."""
        if self.chat is None or self.date is not None:
            return self.messages
        first = self.messages[0]
        content = first.parts[0]
        assert isinstance(content, SystemContent)
        dated = SystemContent(**{**vars(content), "conversation_start_date": date})
        return (first.with_content(dated), *self.messages[1:])

    def undated(self) -> Conversation:
        """The conversation without a date, for templates and servers, which use their own clock."""
        return self if self.chat is None else replace(self, date=None)


def as_conversation(value: Any, title: str = "conversation") -> Conversation:
    """A conversation from messages of this package, or from plain data.

    Raises:
        HarmonyError: it is not a conversation; the message names the field.
    """
    if isinstance(value, Conversation):
        return value
    if isinstance(value, Message):
        value = [value]
    if isinstance(value, Sequence) and value and all(isinstance(m, Message) for m in value):
        return Conversation(tuple(value), title=title)
    return conversation_from_data(value, title)


def read_conversation(path: str | Path) -> Conversation:
    """The conversation in a JSON file; `-` is the standard input.

    Raises:
        HarmonyError: the file cannot be read, is too large, or is not JSON with a conversation.
    """
    where = Path(path)
    try:
        with open(0 if path == "-" else where, "rb", closefd=path != "-") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise HarmonyError(f"{path}: more than {MAX_BYTES >> 20} MiB")
        data = json.loads(content.decode())
    except OSError as error:
        raise HarmonyError(f"{path}: {error.strerror or error}") from None
    except RecursionError:
        raise HarmonyError(f"{path}: nested too deeply") from None
    except ValueError as error:
        if isinstance(error, HarmonyError):
            raise
        raise HarmonyError(f"{path}: not JSON: {error}") from None
    try:
        return conversation_from_data(data, where.name)
    except HarmonyError as error:
        raise HarmonyError(f"{path}: {error}") from None


def conversation_from_data(data: Any, title: str = "conversation") -> Conversation:
    """A conversation from plain data: see the module's docstring.

    Raises:
        HarmonyError: no messages, an unknown field or role, or an invalid message.
    """
    if isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
        data = {"messages": data}
    if not isinstance(data, Mapping) or not isinstance(data.get("messages"), (list, tuple)):
        raise HarmonyError("conversation: expected a list of messages, or an object with messages")
    messages = data["messages"]
    if not messages:
        raise HarmonyError("conversation: expected at least one message")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), (str, Mapping)):
            raise HarmonyError(f"message {number}: expected an object with role and content")
    kind = data.get("format")
    if kind not in (None, "chat", "harmony"):
        raise HarmonyError(f"format {kind!r}: expected 'chat' or 'harmony'")
    title = str(data.get("title") or data.get("id") or title)
    try:
        if kind == "harmony" or (kind is None and any(map(_is_harmony, messages))):
            return Conversation(tuple(map(_harmony_message, messages)), title=title)
        return _from_chat(data, title)
    except RecursionError:
        raise HarmonyError("conversation: nested too deeply, or in a circle") from None


# --- Harmony's own --------------------------------------------------------------------------------


def _is_harmony(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    parts = content if isinstance(content, (list, tuple)) else [content]
    return (
        bool(_HARMONY_KEYS & set(message))
        or "author" in message
        or any(
            isinstance(part, Mapping) and part.get("type", "") not in ("text", "input_text")
            for part in parts
        )
    )


def _harmony_message(data: Mapping[str, Any]) -> Message:
    fields = dict(data)
    content = fields.pop("content", "")
    parts = content if isinstance(content, (list, tuple)) else [content]
    made = [_harmony_part(str(fields.get("role")), part) for part in parts]
    if unknown := set(fields) - {"role", "name", *_HARMONY_KEYS}:
        raise HarmonyError(f"{fields.get('role')} message: unknown field {sorted(unknown)[0]!r}")
    message = Message.from_dict({**fields, "content": ""})
    return message.with_content(made)


def _harmony_part(role: str, part: Any) -> Any:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise HarmonyError(f"{role} message: content must be text or an object, found {part!r}")
    kind = part.get("type")
    if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        return part["text"]
    fields = {key: value for key, value in part.items() if key != "type" and value is not None}
    if kind == "system_content":
        channels = fields.pop("channel_config", None) or {}
        fields["channels"] = tuple(channels.get("valid_channels", ()))
        fields["channel_required"] = bool(channels.get("channel_required", True))
        for key in ("model_identity", "knowledge_cutoff", "reasoning_effort"):
            fields[key] = part.get(key)
        effort = fields["reasoning_effort"]
        fields["reasoning_effort"] = effort.lower() if isinstance(effort, str) else effort
    if kind in ("system_content", "developer_content") and isinstance(fields.get("tools"), Mapping):
        fields["tools"] = list(fields["tools"].values())
    if kind not in (None, "system_content", "developer_content"):
        raise HarmonyError(f"{role} message: content of type {kind!r}: expected text")
    return Message.from_dict({"role": role, "content": fields}).parts[0]


# --- chat APIs ------------------------------------------------------------------------------------


def _from_chat(data: Mapping[str, Any], title: str) -> Conversation:
    data = _without_older_names(data)
    if unknown := set(data) - _TOP_KEYS:
        raise HarmonyError(f"conversation: unknown field {sorted(unknown)[0]!r}")
    date = data.get("date", data.get("conversation_start_date"))
    if date is not None and not isinstance(date, str):
        raise HarmonyError(f"date {date!r}: expected a text such as 2025-06-28")
    effort = data.get("reasoning_effort")
    identity = data.get("model_identity")
    system = SystemContent(
        model_identity=MODEL_IDENTITY if identity is None else str(identity),
        reasoning_effort="medium" if effort is None else effort,
        conversation_start_date=date,
        tools=_built_in(data.get("builtin_tools") or ()),
    )
    functions = tuple(map(tool_from_dict, _list(data, "tools")))
    out: list[Message] = [Message.system(system)]
    names: dict[str, str] = {}
    pending: list[str] = []
    described = False
    for number, message in enumerate(data["messages"]):
        role = message["role"]
        if unknown := set(message) - _CHAT_KEYS:
            raise HarmonyError(f"message {number} ({role}): unknown field {sorted(unknown)[0]!r}")
        if role != "assistant" and message.get("tool_calls"):
            raise HarmonyError(f"message {number} ({role}): a call, expected the role assistant")
        if role in ("system", "developer"):
            tools = functions if not described and len(out) == 1 else ()
            described = described or bool(tools)
            text = _text(message, number) or None
            out.append(Message.developer(DeveloperContent.with_functions(text, tools)))
        elif role == "user":
            out.append(Message("user", _text(message, number)))
        elif role == "assistant":
            out += _assistant(message, number, names, pending)
        elif role == "tool":
            out.append(_result(message, number, names, pending))
        else:
            raise HarmonyError(
                f"message {number}: role {role!r}: expected system, developer, user, assistant or "
                "tool"
            )
    if functions and not described:
        out.insert(1, Message.developer(DeveloperContent.with_functions(None, functions)))
    return Conversation(tuple(out), data, date, title)


def _without_older_names(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """`functions` become `tools`, `function_call` becomes `tool_calls`, as in OpenAI's API."""
    data = dict(data)
    if functions := _list(data, "functions"):
        if data.get("tools"):
            raise HarmonyError("conversation: both 'tools' and 'functions', expected one of them")
        data["tools"] = [{"type": "function", "function": one} for one in functions]
    data.pop("functions", None)
    messages = []
    for number, message in enumerate(data["messages"]):
        message = dict(message)
        if call := message.pop("function_call", None):
            if message.get("tool_calls"):
                raise HarmonyError(f"message {number}: both 'tool_calls' and 'function_call'")
            message["tool_calls"] = [{"type": "function", "function": call}]
        messages.append(message)
    return {**data, "messages": messages}


def _list(data: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = data.get(key) or ()
    if not isinstance(value, (list, tuple)):
        raise HarmonyError(f"{key}: expected a list, found {type(value).__name__}")
    return value


def _built_in(names: Iterable[Any]) -> tuple[ToolNamespace, ...]:
    known = {"browser": browser, "python": python}
    for name in names:
        if name not in known:
            raise HarmonyError(f"builtin_tools: {name!r}: expected browser or python")
    return tuple(known[name]() for name in names)


def _text(message: Mapping[str, Any], number: int, key: str = "content") -> str:
    """The text of a message's content, which is a string, null, or a list of text parts."""
    content = message.get(key)
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, (list, tuple)):
        texts = []
        for part in content:
            text = part.get("text") if isinstance(part, Mapping) else part
            if not isinstance(text, str):
                raise HarmonyError(f"message {number}: {key}: expected text, found {part!r}"[:200])
            texts.append(text)
        return "".join(texts)
    raise HarmonyError(f"message {number}: {key}: expected text, found {type(content).__name__}")


def _assistant(
    message: Mapping[str, Any], number: int, names: dict[str, str], pending: list[str]
) -> list[Message]:
    out = []
    for key in _THOUGHTS:
        if thought := _text(message, number, key):
            out.append(Message.assistant(thought, "analysis"))
            break
    calls = _list(message, "tool_calls")
    text = _text(message, number) or _text(message, number, "refusal")
    if text or not calls:
        out.append(Message.assistant(text, "commentary" if calls else "final"))
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise HarmonyError(f"message {number}: tool call {call!r}: expected a function"[:200])
        arguments = function.get("arguments", "{}")
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        recipient = f"functions.{function['name']}"
        out.append(Message.call(recipient, arguments))
        pending.append(recipient)
        if isinstance(call.get("id"), str):
            names[call["id"]] = recipient
    return out


def _result(
    message: Mapping[str, Any], number: int, names: dict[str, str], pending: list[str]
) -> Message:
    """A tool's result, with the name from the call with its id, or from the open call."""
    key = message.get("tool_call_id")
    if key is not None and key not in names:
        raise HarmonyError(f"message {number}: tool_call_id {key!r}: no call before it has that id")
    name = names[key] if key is not None else None
    if name is None and isinstance(message.get("name"), str):
        name = f"functions.{message['name'].removeprefix('functions.')}"
    if name is None and len(pending) == 1:
        name = pending[0]
    if name is None:
        raise HarmonyError(f"message {number}: tool result without tool_call_id: expected one")
    if name in pending:
        pending.remove(name)
    return Message.tool(name, _text(message, number))
