"""Bugs in the descriptions of a tool's parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gptoss_ref.chat.messages import DeveloperContent
from gptoss_ref.chat.tools import Tool
from gptoss_ref.verify.rendering.bug import bug
from gptoss_ref.verify.rendering.bugs_tools import Developer, each_tool

Schema = Any
"""A JSON schema, as parsed."""


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
    "parameter-descriptions-missing",
    "developer",
    "The model has to guess the meaning of parameters from their names.",
)
def _(right: Developer, content: DeveloperContent) -> str:
    """The description of a parameter is missing."""
    return right(in_schemas(content, _without("description", "title")))


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
    "The model cannot distinguish strings from numbers.",
)
def _(right: Developer, content: DeveloperContent) -> str:
    """Default values of type string have no quotes."""
    return re.sub(r'// default: "([^"\n]*)"', r"// default: \1", right(content))


@bug(
    "default-of-enum-quoted",
    "developer",
    "Training prompts had no quotes there; no effect is known.",
    form=True,
)
def _(right: Developer, content: DeveloperContent) -> str:
    """The default value of an enum is in quotes."""
    return re.sub(r'(" \| "[^\n]*, // default: )(?!")([^\n]+)', r'\1"\2"', right(content))


@bug(
    "comma-behind-default",
    "developer",
    "Training prompts had no comma there; no effect is known.",
    form=True,
    variants={"except after that of an enum": {"enums": False}},
)
def _(right: Developer, content: DeveloperContent, enums: bool = True) -> str:
    """The comment with a default value ends with a comma: `// default: 3,`."""
    kept = r"" if enums else r'(?!.*" \| ")'
    return re.sub(rf"^({kept}.*, // default: .*)$", r"\1,", right(content), flags=re.MULTILINE)


@bug(
    "last-comma-missing",
    "developer",
    "Training prompts had a comma there; no effect is known.",
    form=True,
)
def _(right: Developer, content: DeveloperContent) -> str:
    """The last parameter of a function has no comma after it."""
    return right(content).replace(",\n}) => any", "\n}) => any")


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
        # the renderer copies the names in a list of types
        return schema | {"type": ["integer "]} if schema.get("type") == "integer" else schema

    return right(in_schemas(content, kept)).replace("integer ", "integer")


@bug(
    "empty-parameters-as-none",
    "developer",
    "The type of a function without parameters differs from training; no effect is known.",
    form=True,
)
def _(right: Developer, content: DeveloperContent) -> str:
    """A function whose schema has no properties is written `() => any`."""
    return right(content).replace("(_: {\n}) => any", "() => any")
