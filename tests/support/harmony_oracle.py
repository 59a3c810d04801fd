"""openai-harmony as the oracle of the chat tests, and conversations for both.

The strategies make conversations of our records; `to_oracle` translates them. Nothing here renders
or parses.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import openai_harmony as oh
from hypothesis import strategies as st

from gptoss_ref.chat import (
    DeveloperContent,
    Message,
    SystemContent,
    Tool,
    ToolNamespace,
    browser,
    python,
)
from gptoss_ref.chat.pack_ranks import RELEASED_SHA256, released_text, shipped_tokens


@functools.cache
def oracle() -> oh.HarmonyEncoding:
    """The package's encoding, reading the ranks that ours ships (their hash is checked first)."""
    with tempfile.TemporaryDirectory() as folder:
        text = released_text(shipped_tokens())
        assert hashlib.sha256(text).hexdigest() == RELEASED_SHA256
        (Path(folder) / "o200k_base.tiktoken").write_bytes(text)
        before = os.environ.get("TIKTOKEN_ENCODINGS_BASE")
        os.environ["TIKTOKEN_ENCODINGS_BASE"] = folder
        try:
            return oh.load_harmony_encoding(oh.HarmonyEncodingName.HARMONY_GPT_OSS)
        finally:
            if before is None:
                del os.environ["TIKTOKEN_ENCODINGS_BASE"]
            else:
                os.environ["TIKTOKEN_ENCODINGS_BASE"] = before


# --- translation ----------------------------------------------------------------------------------


def _namespaces(spaces: Any) -> dict[str, oh.ToolNamespaceConfig] | None:
    made = {
        space.name: oh.ToolNamespaceConfig(
            name=space.name,
            description=space.description,
            tools=[
                oh.ToolDescription(
                    name=tool.name,
                    description=tool.description,
                    parameters=None if tool.parameters is None else dict(tool.parameters),
                )
                for tool in space.tools
            ],
        )
        for space in spaces
    }
    return made or None


def _content(part: Any) -> oh.Content:
    if isinstance(part, SystemContent):
        return oh.SystemContent(
            model_identity=part.model_identity,
            reasoning_effort=part.reasoning_effort and part.reasoning_effort.title(),
            conversation_start_date=part.conversation_start_date,
            knowledge_cutoff=part.knowledge_cutoff,
            channel_config=oh.ChannelConfig(
                valid_channels=list(part.channels), channel_required=part.channel_required
            ),
            tools=_namespaces(part.tools),
        )
    if isinstance(part, DeveloperContent):
        return oh.DeveloperContent(instructions=part.instructions, tools=_namespaces(part.tools))
    return oh.TextContent(text=part)


def to_oracle(messages: list[Message]) -> oh.Conversation:
    """The same conversation in openai-harmony's classes."""
    return oh.Conversation.from_messages(
        [
            oh.Message(
                author=oh.Author(role=oh.Role(message.role), name=message.name),
                content=[_content(part) for part in message.parts],
                channel=message.channel,
                recipient=message.recipient,
                content_type=message.content_type,
            )
            for message in messages
        ]
    )


def from_oracle(messages: list[oh.Message]) -> list[Message]:
    """Parsed messages, all of whose content is text, in our classes."""
    return [
        Message(
            message.author.role.value,
            "".join(part.text for part in message.content),  # type: ignore[attr-defined]
            name=message.author.name,
            recipient=message.recipient,
            channel=message.channel,
            content_type=message.content_type,
        )
        for message in messages
    ]


# --- strategies -----------------------------------------------------------------------------------

SPELT = [
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|channel|>",
    "<|constrain|>",
    "<|return|>",
    "<|call|>",
    "<|endoftext|>",
    "<|endofprompt|>",
    "<|reserved_200018|>",
    "<|end|><|start|>assistant<|channel|>final<|message|>",
]

characters = st.characters(exclude_categories=["Cs"])
texts = st.lists(
    st.one_of(
        st.text(characters, max_size=8),
        st.sampled_from(SPELT),
        st.sampled_from(["\n", "\r\n", "  ", " the", "27 + 58", "don't", "日本", "👩‍🚀", "é"]),
    ),
    max_size=5,
).map("".join)

words = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", min_size=1, max_size=8)
names = st.one_of(words, st.builds("{}.{}".format, words, words))
lines = st.one_of(words, texts)
numbers = st.one_of(
    st.booleans(),
    st.none(),
    st.integers(-(2**63), 2**64 - 1),
    # a few decimal digits: serde_json may read longer ones one bit off
    st.builds(lambda m, e: float(f"{m}e{e}"), st.integers(-999, 999), st.integers(-9, 18)),
)
json_values = st.recursive(
    st.one_of(numbers, lines),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=4,
)


def _with_extras(schema: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Fields that any schema may have."""
    extras = st.fixed_dictionaries(
        {},
        optional={
            "title": lines,
            "description": lines,
            "default": json_values,
            "nullable": st.booleans(),
            "examples": st.lists(st.one_of(lines, numbers), max_size=3),
            "enum": st.lists(st.one_of(lines, numbers), max_size=3),
        },
    )
    return st.builds(lambda a, b: {**a, **b}, extras, schema)


_leaves = _with_extras(
    st.one_of(
        st.sampled_from(["string", "number", "integer", "boolean", "array", "null", "object"]).map(
            lambda kind: {"type": kind}
        ),
        st.lists(
            st.sampled_from(["string", "integer", "null", "object"]), min_size=0, max_size=3
        ).map(lambda kinds: {"type": kinds}),
        st.just({}),
        st.just({"$ref": "#/definitions/x"}),
        st.just({"const": 3}),
    )
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    objects = st.builds(
        lambda properties, required: {
            "type": "object",
            "properties": properties,
            "required": [name for name in properties if name in required or len(name) % 2],
        },
        st.dictionaries(words, inner, max_size=4),
        st.lists(words, max_size=2),
    )
    return _with_extras(
        st.one_of(
            objects,
            st.builds(lambda items: {"type": "array", "items": items}, inner),
            st.builds(lambda several: {"oneOf": several}, st.lists(inner, max_size=3)),
            st.builds(lambda several: {"anyOf": several}, st.lists(inner, max_size=3)),
            st.builds(
                lambda several: {"type": "object", "oneOf": several}, st.lists(inner, max_size=2)
            ),
        )
    )


schemas = st.recursive(st.one_of(_leaves, st.booleans()), _nested, max_leaves=6).filter(
    lambda schema: isinstance(schema, dict)
)
parameters = st.one_of(
    st.none(),
    schemas,
    st.builds(
        lambda properties: {"type": "object", "properties": properties},
        st.dictionaries(words, schemas, max_size=3),
    ),
)
tools = st.builds(Tool, words, lines, parameters)
namespaces = st.builds(
    ToolNamespace,
    st.one_of(st.just("functions"), words),
    st.none() | lines,
    st.lists(tools, max_size=3, unique_by=lambda tool: tool.name),
)
systems = st.builds(
    SystemContent,
    model_identity=st.none() | lines,
    reasoning_effort=st.sampled_from([None, "low", "medium", "high"]),
    conversation_start_date=st.none() | st.dates().map(str),
    knowledge_cutoff=st.none() | st.just("2024-06"),
    channels=st.lists(st.sampled_from(["analysis", "commentary", "final", "odd"]), max_size=4),
    channel_required=st.booleans(),
    tools=st.lists(
        st.one_of(st.just(browser()), st.just(python()), namespaces),
        max_size=2,
        unique_by=lambda space: space.name,
    ),
)
developers = st.builds(
    DeveloperContent,
    st.none() | lines,
    st.lists(namespaces, max_size=2, unique_by=lambda space: space.name),
)

# headers such as models and APIs make: these can be parsed again without doubt
recipients = st.one_of(
    st.none(), st.builds("functions.{}".format, words), st.sampled_from(["python", "browser.open"])
)
channels = st.sampled_from([None, "analysis", "commentary", "final"])
content_types = st.sampled_from([None, "json", "code", "<|constrain|>json"])
users = st.builds(Message, st.just("user"), texts, name=st.none() | words)
assistants = st.builds(
    Message,
    st.just("assistant"),
    texts,
    recipient=recipients | st.just("all"),
    channel=channels,
    content_type=content_types,
)
answers = st.builds(
    Message,
    st.just("tool"),
    texts,
    name=names,
    recipient=st.sampled_from([None, "assistant", "all"]),
    channel=st.sampled_from([None, "commentary", "analysis"]),
)
openings = st.tuples(
    st.one_of(st.none(), st.builds(Message, st.just("system"), systems)),
    st.one_of(st.none(), st.builds(Message, st.just("developer"), developers)),
).map(lambda pair: [message for message in pair if message is not None])


def _turn(user: Message, steps: list[Message], final: Message | None) -> list[Message]:
    return [user, *steps, *([] if final is None else [final])]


turns = st.builds(
    _turn,
    users,
    st.lists(
        st.one_of(
            st.builds(lambda text: Message.assistant(text, "analysis"), texts),
            st.builds(Message.call, st.builds("functions.{}".format, words), texts),
            answers,
            assistants,
        ),
        max_size=4,
    ),
    st.none() | st.builds(Message.assistant, texts),
)
conversations = st.builds(
    lambda opening, several: opening + [message for turn in several for message in turn],
    openings,
    st.lists(turns, max_size=3),
)
