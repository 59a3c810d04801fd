"""Chat in the Harmony format: tokenizer, renderer, streaming parser, and `respond`.

The names below are imported when they are first used, tiktoken when a tokenizer is built.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# public name -> the module that defines it
_HOMES = {
    "Tokenizer": "tokenizer",
    "harmony_specials": "tokenizer",
    "load_tokenizer": "hf_tokenizer",
    "o200k_harmony": "tokenizer",
    "small_harmony": "tokenizer",
    "read_tokenizer_json": "hf_tokenizer",
    "tokenizer_json": "hf_tokenizer",
    "DeveloperContent": "messages",
    "Message": "messages",
    "SystemContent": "messages",
    "Tool": "tools",
    "ToolNamespace": "tools",
    "browser": "tools",
    "python": "tools",
    "tool_from_dict": "tool_data",
    "tools_from_data": "tool_data",
    "Chat": "conversation",
    "PrefixCache": "conversation",
    "build_conversation": "conversation",
    "respond": "conversation",
    "stream": "conversation",
    "Collector": "reply",
    "Reply": "reply",
    "ToolCall": "reply",
    "Event": "parser",
    "HarmonyParser": "parser",
    "Header": "header",
    "MessageEnd": "parser",
    "MessageStart": "parser",
    "Repair": "parser",
    "TextDelta": "parser",
    "parse": "parser",
    "drop_analysis": "render",
    "render_conversation": "render",
    "render_conversation_for_training": "render",
    "render_message": "render",
}

__all__ = [
    "Chat",
    "Collector",
    "DeveloperContent",
    "Event",
    "HarmonyParser",
    "Header",
    "Message",
    "MessageEnd",
    "MessageStart",
    "PrefixCache",
    "Repair",
    "Reply",
    "SystemContent",
    "TextDelta",
    "Tokenizer",
    "Tool",
    "ToolCall",
    "ToolNamespace",
    "browser",
    "build_conversation",
    "drop_analysis",
    "harmony_specials",
    "load_tokenizer",
    "o200k_harmony",
    "parse",
    "python",
    "read_tokenizer_json",
    "render_conversation",
    "render_conversation_for_training",
    "render_message",
    "respond",
    "small_harmony",
    "stream",
    "tokenizer_json",
    "tool_from_dict",
    "tools_from_data",
]

if TYPE_CHECKING:
    from gptoss_ref.chat.conversation import Chat, PrefixCache, build_conversation, respond, stream
    from gptoss_ref.chat.header import Header
    from gptoss_ref.chat.hf_tokenizer import load_tokenizer, read_tokenizer_json, tokenizer_json
    from gptoss_ref.chat.messages import DeveloperContent, Message, SystemContent
    from gptoss_ref.chat.parser import (
        Event,
        HarmonyParser,
        MessageEnd,
        MessageStart,
        Repair,
        TextDelta,
        parse,
    )
    from gptoss_ref.chat.render import (
        drop_analysis,
        render_conversation,
        render_conversation_for_training,
        render_message,
    )
    from gptoss_ref.chat.reply import Collector, Reply, ToolCall
    from gptoss_ref.chat.tokenizer import Tokenizer, harmony_specials, o200k_harmony, small_harmony
    from gptoss_ref.chat.tool_data import tool_from_dict, tools_from_data
    from gptoss_ref.chat.tools import Tool, ToolNamespace, browser, python


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(globals() | _HOMES)
