"""Bugs in the descriptions of tools."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gptoss_ref.chat.messages import DeveloperContent, SystemContent
from gptoss_ref.chat.tools import Tool, tools_section
from gptoss_ref.verify.rendering.bug import bug

Developer = Callable[[DeveloperContent], str]


def each_tool(content: DeveloperContent, change: Callable[[Tool], Tool]) -> DeveloperContent:
    """The same developer message with every function changed."""
    spaces = [replace(s, tools=tuple(change(t) for t in s.tools)) for s in content.tools]
    return replace(content, tools=tuple(spaces))


@bug(
    "tools-missing",
    "developer",
    "The model does not know the tools: it invents calls or makes none.",
    "vinhnx/VTCode#318 vinhnx/VTCode#312",
)
def _(right: Developer, content: DeveloperContent) -> str:
    """The functions are not described."""
    return right(replace(content, tools=()))


@bug(
    "tools-as-json",
    "developer",
    "The model was trained on TypeScript: calls to tools described as JSON are less reliable, and "
    "the description costs more tokens.",
    variants={
        "indented": {"indent": 2},
        "as chat APIs take them": {"wrapped": True},
        "as chat APIs take them, indented": {"wrapped": True, "indent": 2},
    },
)
def _(
    right: Developer, content: DeveloperContent, indent: int | None = None, wrapped: bool = False
) -> str:
    """The functions are described as JSON schemas instead of TypeScript."""
    if not content.tools:
        return right(content)
    tools: list[Any] = [
        {"name": t.name, "description": t.description, "parameters": t.parameters}
        for space in content.tools
        for t in space.tools
    ]
    if wrapped:
        tools = [{"type": "function", "function": tool} for tool in tools]
    text = json.dumps(tools, indent=indent, ensure_ascii=False)
    told = right(replace(content, tools=()))
    return "\n\n".join([*([told] if told else []), "# Tools", text])


@bug(
    "tools-heading-missing",
    "developer",
    "The model was trained on a section with headings, and sees types without them.",
)
def _(right: Developer, content: DeveloperContent) -> str:
    """The headings "# Tools" and "## functions" are missing."""
    return right(content).replace("# Tools\n\n## functions\n\n", "")


@bug(
    "tools-namespace-missing",
    "developer",
    "The model calls `f` instead of `functions.f`, and the call is not recognised.",
)
def _(right: Developer, content: DeveloperContent) -> str:
    """The types of the functions are not in `namespace functions { … }`."""
    text = right(content).replace("namespace functions {\n\n", "")
    return text.replace("\n\n} // namespace functions", "")


@bug(
    "tool-descriptions-missing",
    "developer",
    "The model has to guess the purpose of a tool from its name.",
)
def _(right: Developer, content: DeveloperContent) -> str:
    """The description of a function is missing."""
    return right(each_tool(content, lambda tool: replace(tool, description="")))


@bug(
    "description-lines-not-commented",
    "developer",
    "The further lines of a description look like code.",
)
def _(right: Developer, content: DeveloperContent) -> str:
    """If a function's description has several lines, only the first begins with `// `."""
    text = right(content)
    for space in content.tools:
        for tool in space.tools:
            first, *more = tool.description.split("\n")
            if more:
                commented = "\n".join([f"// {first}", *(f"// {line}" for line in more)])
                text = text.replace(commented, f"// {tool.description}")
    return text


@bug(
    "description-newlines-lost",
    "developer",
    "Lists and examples in a description run together.",
)
def _(right: Developer, content: DeveloperContent) -> str:
    """Newlines in a function's description become spaces."""
    return right(
        each_tool(content, lambda t: replace(t, description=t.description.replace("\n", " ")))
    )


@bug(
    "blank-lines-before-tools",
    "developer",
    "Without instructions, there are two newlines before the section of tools.",
    form=True,
)
def _(right: Developer, content: DeveloperContent) -> str:
    """A developer message with tools and no instructions begins with an empty line."""
    text = right(content)
    return f"\n\n{text}" if text.startswith("# Tools") else text


@bug(
    "tools-sorted",
    "developer",
    "The same tools in another order are another prompt: caches miss and results differ.",
    "ollama/ollama#12244 alibaba/open-code-review#721",
)
def _(right: Developer, content: DeveloperContent) -> str:
    """Functions are in alphabetical order instead of the caller's."""
    spaces = [replace(s, tools=sorted(s.tools, key=lambda t: t.name)) for s in content.tools]
    return right(replace(content, tools=tuple(spaces)))


@bug(
    "unicode-escaped",
    "developer",
    "Descriptions in other languages cost several times the tokens and are hard to read.",
    "theroyallab/tabbyAPI#459 huggingface/transformers#31100",
)
def _(right: Developer, content: DeveloperContent) -> str:
    """Non-ASCII characters in descriptions are written as `\\uXXXX`."""
    return "".join(c if c < "\x80" else json.dumps(c)[1:-1] for c in right(content))


@bug(
    "html-escaped",
    "developer",
    "`<`, `>` and `&` in descriptions read as markup.",
    "huggingface/transformers#31100 mistralai/mistral-common#311",
)
def _(right: Developer, content: DeveloperContent) -> str:
    """`<`, `>` and `&` are escaped as in HTML."""
    return html.escape(right(content), quote=False).replace("=&gt; any", "=> any")


@bug(
    "tools-in-system-message",
    "whole",
    "The functions take the place of built-in tools, and get the rank of the system message.",
)
def _(right: Callable[..., Any], pieces: Any, messages: Any) -> Any:
    """The functions are described in the system message instead of the developer message."""
    functions = [
        space
        for message in messages
        for part in message.parts
        if isinstance(part, DeveloperContent)
        for space in part.tools
    ]
    out = list(right(pieces, messages))
    if not functions or not any(
        isinstance(part, SystemContent) for message in messages for part in message.parts
    ):
        return out
    section = tools_section(functions)
    done = False
    for at, piece in enumerate(out):
        if not isinstance(piece, str):
            continue
        if not done and "# Valid channels" in piece:
            out[at] = piece.replace("# Valid channels", section + "\n\n# Valid channels", 1)
            done = True
        elif done and section in piece:
            out[at] = piece.replace("\n\n" + section, "").replace(section, "")
    return out
