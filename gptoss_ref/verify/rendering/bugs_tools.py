"""Bugs in the descriptions of tools."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gptoss_ref.chat.messages import DeveloperContent, SystemContent
from gptoss_ref.chat.tools import Tool, tools_section
from gptoss_ref.verify.rendering.bug import bug

Developer = Callable[[DeveloperContent], str]
Schema = Any
"""A JSON schema, as parsed."""


def each_tool(content: DeveloperContent, change: Callable[[Tool], Tool]) -> DeveloperContent:
    """The same developer message with every function changed."""
    spaces = [replace(s, tools=tuple(change(t) for t in s.tools)) for s in content.tools]
    return replace(content, tools=tuple(spaces))


def each_schema(schema: Schema, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Schema:
    """The same schema with every schema object in it changed, inner ones first."""
    if not isinstance(schema, Mapping):
        return schema
    out = dict(schema)
    if isinstance(out.get("properties"), Mapping):
        out["properties"] = {n: each_schema(s, change) for n, s in out["properties"].items()}
    if "items" in out:
        out["items"] = each_schema(out["items"], change)
    if isinstance(out.get("oneOf"), (list, tuple)):
        out["oneOf"] = [each_schema(s, change) for s in out["oneOf"]]
    return change(out)


def in_schemas(
    content: DeveloperContent, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> DeveloperContent:
    """The same developer message with every schema of its functions changed."""

    def changed(tool: Tool) -> Tool:
        if tool.parameters is None:
            return tool
        return replace(tool, parameters=each_schema(tool.parameters, change))

    return each_tool(content, changed)


def _without(*keys: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda schema: {key: value for key, value in schema.items() if key not in keys}


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
    "parameter-descriptions-missing",
    "developer",
    "The model has to guess the meaning of parameters from their names.",
)
def _(right: Developer, content: DeveloperContent) -> str:
    """The description of a parameter is missing."""
    return right(in_schemas(content, _without("description", "title")))


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
    "optional-marks-missing",
    "developer",
    "The model invents values for optional parameters.",
)
def _(right: Developer, content: DeveloperContent) -> str:
    """Optional parameters lack their `?`."""

    def required(schema: dict[str, Any]) -> dict[str, Any]:
        names = schema.get("properties")
        return schema | {"required": list(names)} if isinstance(names, Mapping) else schema

    return right(in_schemas(content, required))


@bug(
    "required-marked-optional",
    "developer",
    "The model leaves out required parameters.",
)
def _(right: Developer, content: DeveloperContent) -> str:
    """Required parameters have a `?`."""
    return right(in_schemas(content, _without("required")))


@bug(
    "enum-lost",
    "developer",
    "The model invents values that the tool refuses.",
)
def _(right: Developer, content: DeveloperContent) -> str:
    """A parameter with an enum is a plain string."""
    return right(in_schemas(content, _without("enum")))


@bug(
    "enum-as-comment",
    "developer",
    "The values no longer constrain the type that the model reads.",
)
def _(right: Developer, content: DeveloperContent) -> str:
    """The values of an enum are in a comment above a plain string."""

    def commented(schema: dict[str, Any]) -> dict[str, Any]:
        values = schema.get("enum")
        if not isinstance(values, list):
            return schema
        told = schema.get("description", "")
        text = f"{told} (one of: {', '.join(map(str, values))})".strip()
        return _without("enum")(schema) | {"description": text}

    return right(in_schemas(content, commented))


@bug(
    "default-missing",
    "developer",
    "The model does not know what happens if it leaves a parameter out.",
    "brightwave-inc/tidebreak#1088",
)
def _(right: Developer, content: DeveloperContent) -> str:
    """Default values are left out."""
    return right(in_schemas(content, _without("default")))


@bug(
    "default-without-quotes",
    "developer",
    "The model cannot distinguish texts from numbers.",
)
def _(right: Developer, content: DeveloperContent) -> str:
    """Default values that are texts have no quotes."""
    return re.sub(r'// default: "([^"\n]*)"', r"// default: \1", right(content))


@bug(
    "default-of-enum-quoted",
    "developer",
    "One more character than in training; harmless as far as known.",
    form=True,
)
def _(right: Developer, content: DeveloperContent) -> str:
    """The default value of an enum is in quotes."""
    return re.sub(r'(" \| "[^\n]*, // default: )(?!")([^\n]+)', r'\1"\2"', right(content))


@bug(
    "comma-behind-default",
    "developer",
    "The comma after the type is also in the comment; harmless as far as known.",
    form=True,
    variants={"except behind that of an enum": {"enums": False}},
)
def _(right: Developer, content: DeveloperContent, enums: bool = True) -> str:
    """The comment with a default value ends with a comma: `// default: 3,`."""
    kept = r"" if enums else r'(?!.*" \| ")'
    return re.sub(rf"^({kept}.*, // default: .*)$", r"\1,", right(content), flags=re.MULTILINE)


@bug(
    "last-comma-missing",
    "developer",
    "One character less than in training; harmless as far as known.",
    form=True,
)
def _(right: Developer, content: DeveloperContent) -> str:
    """The last parameter of a function has no comma after it."""
    return right(content).replace(",\n}) => any", "\n}) => any")


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
    "properties-sorted",
    "developer",
    "The author's order is lost, and the model reads other parameters first.",
    "ollama/ollama#12244",
)
def _(right: Developer, content: DeveloperContent) -> str:
    """Parameters are in alphabetical order instead of that of the schema."""

    def ordered(schema: dict[str, Any]) -> dict[str, Any]:
        names = schema.get("properties")
        return schema | {"properties": dict(sorted(names.items()))} if names else schema

    return right(in_schemas(content, ordered))


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
    """Characters beyond ASCII in descriptions are written as `\\uXXXX`."""
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
    "array-items-lost",
    "developer",
    "The model does not know the type of a list's items.",
    variants={"of objects only": {"objects": True}, "as Array<any>": {"written": "Array<any>"}},
)
def _(
    right: Developer, content: DeveloperContent, objects: bool = False, written: str = "any[]"
) -> str:
    """The type of an array's items is missing: it is `any[]`."""

    def lost(schema: dict[str, Any]) -> dict[str, Any]:
        if schema.get("type") != "array" or "items" not in schema:
            return schema
        items = schema["items"]
        if objects and (not isinstance(items, Mapping) or items.get("type") != "object"):
            return schema
        if written == "Array<any>":
            return _without("items")(schema)
        return schema | {"items": {}}

    return right(in_schemas(content, lost))


@bug(
    "integer-kept",
    "developer",
    "TypeScript has no such type, and no training prompt had it.",
)
def _(right: Developer, content: DeveloperContent) -> str:
    """A parameter of type integer is written `integer` instead of `number`."""

    def kept(schema: dict[str, Any]) -> dict[str, Any]:
        # in a list of types a name stands as it is written
        return schema | {"type": ["integer "]} if schema.get("type") == "integer" else schema

    return right(in_schemas(content, kept)).replace("integer ", "integer")


@bug(
    "empty-parameters-as-none",
    "developer",
    "The type of a function without parameters differs from training; harmless as far as known.",
    form=True,
)
def _(right: Developer, content: DeveloperContent) -> str:
    """A function whose schema has no properties is written `() => any`."""
    return right(content).replace("(_: {\n}) => any", "() => any")


@bug(
    "tools-in-system-message",
    "whole",
    "The functions are in the place of built-in tools, and have their rank.",
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
