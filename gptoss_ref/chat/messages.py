"""Harmony messages as plain records, and the contents of the system and developer messages.

A conversation begins with a *system* message (identity, reasoning effort, channels and built-in
tools) and a *developer* message (the function tools, and what other APIs call the system prompt).
Then *user*, *assistant* and *tool* messages follow. render.py and tools.py write them as text.
"""

from __future__ import annotations

import difflib
import re
import reprlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from gptoss_ref.chat.tool_data import namespaces_from_data, tools_from_data
from gptoss_ref.chat.tools import Tool, ToolNamespace
from gptoss_ref.errors import HarmonyError

ROLES = ("system", "developer", "user", "assistant", "tool")
EFFORTS = ("low", "medium", "high")
CHANNELS = ("analysis", "commentary", "final")
CHANNEL_WORDS = {
    **dict.fromkeys(("thought", "thoughts", "thinking", "think", "reasoning"), "analysis"),
    **dict.fromkeys(("answer", "response"), "final"),
}
"""Other names that models write for a channel, and the channel that they mean."""

# Recipients that are not tools: a message to one of these is not a tool call.
_NOT_TOOLS = ("all", "assistant", "user")

MODEL_IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
KNOWLEDGE_CUTOFF = "2024-06"


def meant_channel(channel: str | None) -> str:
    """The channel of CHANNELS that a name means; "final" for None.

    A misspelt name, a name that contains a channel's name, and the names in CHANNEL_WORDS mean that
    channel. Any other name means "commentary", which is neither the answer nor hidden from users.

    >>> [meant_channel(name) for name in (None, "Final", "comentary", "thought", "??")]
    ['final', 'final', 'commentary', 'analysis', 'commentary']
    """
    if channel is None:
        return "final"
    word = re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", channel)).lower()
    held = [name for name in CHANNELS if name in word]  # final_answer
    near = held if len(held) == 1 else difflib.get_close_matches(word, CHANNELS, cutoff=0.75)
    return CHANNEL_WORDS.get(word) or (near[0] if near else "commentary")


def _check_text(what: str, field_name: str, value: Any) -> None:
    if not isinstance(value, str | None):
        raise HarmonyError(f"{what}: {field_name} {reprlib.repr(value)}: expected text or None")


def _namespaces(spaces: Sequence[ToolNamespace]) -> tuple[ToolNamespace, ...]:
    """The namespaces as a tuple; HarmonyError if two have the same name."""
    names = [space.name for space in spaces]
    for name in names:
        if names.count(name) > 1:
            raise HarmonyError(f"tool namespace {name!r} given {names.count(name)} times")
    return tuple(spaces)


@dataclass(frozen=True)
class SystemContent:
    """The system message. The defaults are those of openai-harmony.

    Attributes:
        model_identity: the first sentence; None leaves it out.
        reasoning_effort: "low", "medium", "high", or None to leave the line out.
        conversation_start_date: an ISO date; None, the default, leaves the line out.
        knowledge_cutoff: a year and month; None leaves the line out.
        channels: the channels that the model may use; empty leaves the section out.
        channel_required: whether the section says that every message must name its channel.
        tools: built-in tools: `browser()`, `python()`.

    Raises:
        HarmonyError: an unknown effort, or two namespaces with the same name.
    """

    model_identity: str | None = MODEL_IDENTITY
    reasoning_effort: str | None = "medium"
    conversation_start_date: str | None = None
    knowledge_cutoff: str | None = KNOWLEDGE_CUTOFF
    channels: Sequence[str] = CHANNELS
    channel_required: bool = True
    tools: Sequence[ToolNamespace] = ()

    def __post_init__(self) -> None:
        if self.reasoning_effort is not None and self.reasoning_effort not in EFFORTS:
            raise HarmonyError(
                f"reasoning effort {self.reasoning_effort!r}: expected one of {', '.join(EFFORTS)}"
            )
        for field_name in ("model_identity", "conversation_start_date", "knowledge_cutoff"):
            _check_text("system message", field_name, getattr(self, field_name))
        if isinstance(self.channels, str) or not all(isinstance(c, str) for c in self.channels):
            raise HarmonyError(
                f"system message: channels {reprlib.repr(self.channels)}: expected a list of names"
            )
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "tools", _namespaces(self.tools))


@dataclass(frozen=True)
class DeveloperContent:
    """The developer message: instructions, and tools in namespaces.

    Functions of the caller belong in the namespace `functions`; `with_functions` puts them there.

    Attributes:
        instructions: the text of the section; None leaves the section out.
        tools: namespaces; `()` renders no section, a namespace without functions an empty one.
    """

    instructions: str | None = None
    tools: Sequence[ToolNamespace] = ()

    def __post_init__(self) -> None:
        _check_text("developer message", "instructions", self.instructions)
        object.__setattr__(self, "tools", _namespaces(self.tools))

    @classmethod
    def with_functions(
        cls, instructions: str | None = None, functions: Sequence[Tool] = ()
    ) -> DeveloperContent:
        """Instructions and function tools; no tools section if there are no functions."""
        spaces = (ToolNamespace("functions", None, functions),) if functions else ()
        return cls(instructions, spaces)


Content = str | SystemContent | DeveloperContent
"""One part of a message."""


@dataclass(frozen=True)
class Message:
    """One message: its header, and its content in one or more parts.

    Attributes:
        role: "system", "developer", "user", "assistant" or "tool".
        content: text, SystemContent (system only), DeveloperContent (developer only), or a
            sequence of those; kept as a tuple.
        name: the author's name; a tool message needs it ("functions.get_weather").
        recipient: the tool that is called, or "assistant" in a tool's answer.
        channel: "analysis", "commentary" or "final" in the assistant's messages.
        content_type: such as "json" or `<|constrain|>json`; that prefix stands for the special
            token.

    Raises:
        HarmonyError: an unknown role, or a field or content of the wrong type.
    """

    role: str
    content: Content | Sequence[Content] = field(default=())
    name: str | None = None
    recipient: str | None = None
    channel: str | None = None
    content_type: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise HarmonyError(f"message role {self.role!r}: expected one of {', '.join(ROLES)}")
        for field_name in ("name", "recipient", "channel", "content_type"):
            _check_text(f"{self.role} message", field_name, getattr(self, field_name))
        if self.role == "tool" and not self.name:
            raise HarmonyError("tool message without a name: expected the name of the tool")
        single = isinstance(self.content, get_args(Content)) or not isinstance(
            self.content, Sequence
        )
        parts = (self.content,) if single else tuple(self.content)  # type: ignore[arg-type]
        for part in parts:
            kind = type(part).__name__
            if not isinstance(part, get_args(Content)):
                raise HarmonyError(f"{self.role} message: content of type {kind}, expected text")
            owner = {"SystemContent": "system", "DeveloperContent": "developer"}.get(kind)
            if owner not in (None, self.role):
                raise HarmonyError(f"{kind} in a {self.role} message: it belongs in a {owner} one")
        object.__setattr__(self, "content", parts)

    @property
    def parts(self) -> tuple[Content, ...]:
        """The content as a tuple, even if it is a single text."""
        return self.content  # type: ignore[return-value]

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @classmethod
    def system(cls, content: SystemContent | str | None = None) -> Message:
        """A system message; without content, the default of openai-harmony."""
        return cls("system", SystemContent() if content is None else content)

    @classmethod
    def developer(cls, content: DeveloperContent | str) -> Message:
        """A developer message. A plain text gets no heading."""
        return cls("developer", content)

    @classmethod
    def user(cls, text: str) -> Message:
        """A question."""
        return cls("user", text)

    @classmethod
    def assistant(cls, text: str, channel: str | None = "final") -> Message:
        """A message of the assistant: an answer or, with channel="analysis", its reasoning."""
        return cls("assistant", text, channel=channel)

    @classmethod
    def call(
        cls, recipient: str, arguments: str, content_type: str = "<|constrain|>json"
    ) -> Message:
        """A tool call of the assistant, in the commentary channel, as the models write it."""
        return cls(
            "assistant",
            arguments,
            recipient=recipient,
            channel="commentary",
            content_type=content_type,
        )

    @classmethod
    def tool(cls, name: str, text: str, channel: str | None = "commentary") -> Message:
        """A tool's result, addressed to the assistant; `channel` is that of the call."""
        return cls("tool", text, name=name, recipient="assistant", channel=channel)

    def with_content(self, content: Content | Sequence[Content]) -> Message:
        """The same header with other content."""
        return replace(self, content=content)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the header fields that are set, and the text."""
        header = ("role", "name", "recipient", "channel", "content_type")
        out = {key: getattr(self, key) for key in header if getattr(self, key) is not None}
        return out | {"content": self.text}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Message:
        """A message from plain data: the fields of this class, content being text.

        In a system message `content` may be an object with SystemContent's fields, in a developer
        message one with `instructions` and `tools` (see tool_data.namespaces_from_data), or
        `functions` (a list of tools).

        Raises:
            HarmonyError: not an object, an unknown field, or an invalid message.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("role"), str):
            raise HarmonyError(
                f"message {reprlib.repr(data)}: expected an object with role and content"
            )
        unknown = set(data) - {"role", "content", "name", "recipient", "channel", "content_type"}
        if unknown:
            raise HarmonyError(f"{data['role']} message: unknown field {min(map(str, unknown))!r}")
        content = data.get("content", "")
        if isinstance(content, Mapping):
            content = _content_from_dict(data["role"], content)
        if not isinstance(content, get_args(Content)):
            raise HarmonyError(
                f"{data['role']} message: content must be text, found {reprlib.repr(content)}"
            )
        return cls(**{**data, "content": content})


def is_call(message: Message) -> bool:
    """Whether a message is a tool call of the assistant."""
    return message.role == "assistant" and message.recipient not in (None, *_NOT_TOOLS)


def place_of(message: Message) -> str:
    """The channel of CHANNELS to which a message of the assistant belongs, see meant_channel.

    If a message has no channel and its content type is a channel's name, that name is its channel.
    """
    named = message.content_type if message.content_type in CHANNELS else None
    return meant_channel(named if message.channel is None else message.channel)


def _content_from_dict(role: str, data: Mapping[str, Any]) -> Content:
    kinds: dict[str, type[SystemContent] | type[DeveloperContent]] = {
        "system": SystemContent,
        "developer": DeveloperContent,
    }
    if role not in kinds:
        raise HarmonyError(f"{role} message: content must be text, found an object")
    fields = dict(data)
    fields["tools"] = namespaces_from_data(fields.get("tools"))
    if role == "developer" and "functions" in fields:
        functions = tools_from_data(fields.pop("functions"))
        fields["tools"] += (ToolNamespace("functions", None, functions),)
    try:
        return kinds[role](**fields)
    except TypeError as error:
        raise HarmonyError(f"{role} message: {error}") from None
