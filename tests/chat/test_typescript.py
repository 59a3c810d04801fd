"""The types of schemas against openai-harmony: one schema for each rule, and for each exception."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gptoss_ref.chat import DeveloperContent, Message, Tool
from gptoss_ref.chat.typescript import to_json, typescript
from tests.support.harmony_oracle import oracle, to_oracle

TEXT = {"type": "string"}
ENUM = {"type": "string", "enum": ["a", "b"]}
LEAVES: dict[str, Any] = {
    "text": TEXT,
    "enum": ENUM,
    "mixed": {"type": "string", "enum": ["a", 1]},
    "numbers": {"type": "string", "enum": [1]},
    "nothing": {"type": "string", "enum": []},
    "no_list": {"type": "string", "enum": "a"},
    "number": {"type": "number", "enum": ["a"]},
    "integer": {"type": "integer"},
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "odd": {"type": "odd"},
    "const": {"const": 3},
    "several": {"type": ["integer", "null", "object"]},
    "several_and_no_text": {"type": ["string", 3]},
    "no_text": {"type": [3]},
    "no_type": {"type": []},
    "nullable": {"type": "string", "nullable": True},
    "not_nullable": {"type": "string", "nullable": False},
    "nullable_text": {"type": "string", "nullable": "true"},
    "nullable_null": {"type": ["string", "null"], "nullable": True},
    "nullable_enum": {"type": "string", "enum": ["nullify"], "nullable": True},
    "array": {"type": "array"},
    "of_texts": {"type": "array", "items": TEXT},
    "of_anything": {"type": "array", "items": {}},
    "of_true": {"type": "array", "items": True},
    "of_nullable": {"type": "array", "items": {"type": "string", "nullable": True}},
    "object": {"type": "object"},
    "no_properties": {"type": "object", "properties": {}},
    "list_of_properties": {"type": "object", "properties": ["a"]},
    "true": True,
    "false": False,
    "one_of_no_list": {"oneOf": "a", "type": "string", "default": "d", "description": "D"},
    "one_of_none": {"oneOf": [], "type": "string", "default": "d", "description": "D"},
}  # fmt: skip
"""By a name of what is told apart."""

SAID: list[dict[str, Any]] = [
    {"title": "T"},
    {"description": "D"},
    {"title": "T", "description": "D"},
    {"title": 3, "description": ["D"]},
    {"examples": ["x", 3, "y"]},
    {"examples": []},
    {"examples": [3]},
    {"default": 'd"d'},
    {"default": 1.5},
    {"default": None},
    {"default": ["a", {"b": True}]},
]
"""What may be said of any of them."""


def object_of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "description": "O", "properties": properties, "required": ["b", 3]}


def variants(*schemas: Any, **said: Any) -> dict[str, Any]:
    return {"oneOf": list(schemas), **said}


D, E = {"description": "D"}, {"description": "E"}
NESTED: dict[str, Any] = {
    "objects": object_of(a=object_of(b=object_of(c=TEXT), d=TEXT), b=TEXT),
    "required_no_list": {"type": "object", "properties": {"a": TEXT}, "required": "a"},
    "array_of_objects": {"type": "array", "items": object_of(a=object_of(b=TEXT))},
    "array_of_variants": {"type": "array", "items": variants(TEXT, {"type": "number"})},
    "variants": variants(TEXT, {"type": "number"}),
    "variants_said": variants(TEXT | E, {"type": "number"} | D, TEXT | D, description="D"),
    "first_says_the_same": variants(TEXT | D, {"type": "number"} | E, description="D"),
    "nothing_above": variants(TEXT | E, {"type": "number"} | D),
    "only_above": variants(TEXT, {"type": "number"}, description="D"),
    "variants_with_defaults": variants(
        TEXT | {"default": "d"}, ENUM | {"default": "a"}, {"type": "number", "default": 3} | D
    ),
    "default_above": variants(TEXT, default="d"),
    "default_above_enum": variants(TEXT, default="d", enum=["d"], title="T", examples=["x"]),
    "nullable_variants": variants(
        TEXT | {"nullable": True}, object_of(a=TEXT) | {"nullable": True}
    ),
    "object_variants": variants(object_of(a=object_of(b=TEXT)), True),
    "variants_of_variants": variants(variants(TEXT, {"type": "number"}), TEXT),
    "typed_variants": variants(TEXT) | {"type": "object"},
}


def theirs(schema: Any) -> str:
    content = DeveloperContent.with_functions(None, [Tool("f", "", schema)])
    (message,) = to_oracle([Message.developer(content)]).messages
    text = oracle().decode(oracle().render(message))
    return text.partition("type f = (_: ")[2].rpartition(") => any;")[0]


@pytest.mark.parametrize("name", [*LEAVES, *NESTED])
def test_as_the_oracle(name: str) -> None:
    """As a property, as a variant, within an array, and alone; with nothing said and with much."""
    schema = {**LEAVES, **NESTED}[name]
    plain = [schema] if isinstance(schema, bool) else [schema, *(schema | s for s in SAID)]
    for one in plain:
        inside = object_of(a=one, b={"type": "array", "items": one}, c=object_of(d=one))
        asked = [inside, variants(one, one), object_of(a=variants(TEXT, one), b=variants(one))]
        for whole in asked if isinstance(one, bool) or "list_of" in name else [*asked, one]:
            assert typescript(whole) == theirs(whole), json.dumps(whole)


def test_json_keeps_every_character() -> None:
    assert to_json({"é\n": ["漢", {3: None}]}) == '{"é\\n":["漢",{"3":null}]}'
