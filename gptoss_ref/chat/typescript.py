"""JSON schemas as TypeScript types, for the parameters of tools in a prompt.

The models were trained on exactly this text, so it follows openai-harmony 0.0.8 to the letter, even
if it is unusual TypeScript: there is almost no indentation, `integer` becomes `number`, and schemas
without a rule here (`anyOf`, `$ref`, `const`, `null`) become `any`.

    {"type": "string", "enum": ["a", "b"]}          "a" | "b"
    {"type": "array", "items": {"type": "number"}}  number[]
    {"type": ["integer", "null"]}                   number | null
    {"type": "string", "nullable": true}            string | null    (in properties and oneOf)
    {"oneOf": [...]}                                one variant per line, each after " | "
    {"type": "object", ...}                         { name: type, } with comments, ? if optional
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

Schema = Any
"""Any JSON value; a value that is not an object is rendered as `any`."""

_ABSENT = object()


def typescript(schema: Schema, indent: str = "") -> str:
    """The type of a schema; each line of an object or of variants begins with `indent`."""
    variants = _list(schema, "oneOf")
    if variants is not None:
        return "".join(f"\n{indent} | {_variant(variant, indent)}" for variant in variants)
    several = [_several(name) for name in _list(schema, "type") or () if isinstance(name, str)]
    if several:
        return " | ".join(several)
    match _text(schema, "type"):
        case "object":
            return _object(schema, indent)
        case "string":
            values = [f'"{v}"' for v in _list(schema, "enum") or () if isinstance(v, str)]
            return " | ".join(values) or "string"
        case "number" | "integer":
            return "number"
        case "boolean":
            return "boolean"
        case "array":
            items = _get(schema, "items")
            return "Array<any>" if items is _ABSENT else f"{typescript(items, indent)}[]"
        case _:
            return "any"


def _several(name: str) -> str:
    """The type for a name in a list of types: the name itself, also for object and array."""
    return "number" if name == "integer" else name


def _variant(schema: Schema, indent: str) -> str:
    """One line of a oneOf, with its comment. A string default is quoted even beside an enum."""
    quoted = not _has_enum(schema)
    comment = [_text(schema, "description"), _default(schema, quoted, always_json=True)]
    return _nullable(schema, f"{indent}   ") + _trailing(comment)


def _trailing(comments: Sequence[str | None]) -> str:
    present = [comment for comment in comments if comment is not None]
    return f" // {' '.join(present)}" if present else ""


def _nullable(schema: Schema, indent: str) -> str:
    """The type, with `| null` if the schema is nullable and the text does not contain it yet."""
    text = typescript(schema, indent)
    return f"{text} | null" if _get(schema, "nullable") is True and "null" not in text else text


def _object(schema: Schema, indent: str) -> str:
    """An object type: one property per line, with comments above it and its default after it."""
    out = []
    description = _text(schema, "description")
    if description is not None:
        out.append(f"{indent}// {description}\n")
    out.append("{\n")
    properties = _get(schema, "properties")
    required = {name for name in _list(schema, "required") or () if isinstance(name, str)}
    for name, value in (properties if isinstance(properties, Mapping) else {}).items():
        label = name if name in required else f"{name}?"
        out += _comments_above(value, indent)
        if _list(value, "oneOf") is not None:
            out += _one_of_property(label, value, indent)
        else:
            out.append(f"{indent}{label}: {_nullable(value, indent + '    ')},")
            if _get(value, "oneOf") is _ABSENT:
                out.append(_trailing([_default(value, not _has_enum(value))]))
            out.append("\n")
    out.append(f"{indent}}}")
    return "".join(out)


def _comments_above(value: Schema, indent: str) -> list[str]:
    """Title, description (except for a oneOf) and examples of a property."""
    out = []
    title, description = _text(value, "title"), _text(value, "description")
    if title is not None:
        out.append(f"{indent}// {title}\n{indent}//\n")
    if description is not None and _get(value, "oneOf") is _ABSENT:
        out.append(f"{indent}// {description}\n")
    examples = _list(value, "examples")
    if examples:
        out.append(f"{indent}// Examples:\n")
        out += [f'{indent}// - "{example}"\n' for example in examples if isinstance(example, str)]
    return out


def _one_of_property(label: str, value: Schema, indent: str) -> list[str]:
    """A property with a oneOf: description and default above, variants below."""
    variants = _list(value, "oneOf") or []
    description = _text(value, "description")
    same = bool(variants) and _text(variants[0], "description") == description
    above = description is not None and not same
    out = [f"{indent}// {description}\n"] if above else []
    default = _default(value, not _has_enum(value))
    if default is not None:
        out.append(f"{indent}// {default}\n")
    out.append(f"{indent}{label}:\n")
    for number, variant in enumerate(variants):
        comment = _text(variant, "description")
        if comment == description or (number == 0 and above):
            comment = None
        trailing = _trailing([comment, _default(variant, not _has_enum(variant))])
        out.append(f"{indent} | {_nullable(variant, indent + '   ')}{trailing}\n")
    out.append(f"{indent},\n")
    return out


def _default(schema: Schema, quoted: bool, *, always_json: bool = False) -> str | None:
    """`default: …`, or None if there is none. Strings are raw, in quotes if `quoted`; others JSON.

    With always_json an unquoted string is written as JSON too, hence in quotes.
    """
    value = _get(schema, "default")
    if value is _ABSENT:
        return None
    if isinstance(value, str) and (quoted or not always_json):
        return f'default: "{value}"' if quoted else f"default: {value}"
    return f"default: {to_json(value)}"


def _has_enum(schema: Schema) -> bool:
    return bool(_list(schema, "enum"))


def _get(schema: Schema, key: str) -> Any:
    return schema.get(key, _ABSENT) if isinstance(schema, Mapping) else _ABSENT


def _text(schema: Schema, key: str) -> str | None:
    value = _get(schema, key)
    return value if isinstance(value, str) else None


def _list(schema: Schema, key: str) -> list[Any] | None:
    value = _get(schema, key)
    return list(value) if isinstance(value, (list, tuple)) else None


def to_json(value: Any) -> str:
    """Compact JSON as serde_json writes it, for the text after `default:` in prompts.

    No spaces and no unnecessary escapes; numbers have the shortest digits that read back, with an
    exponent if they are 1e16 or more or below 1e-5, written as 1e16 and 1e-6. Integers beyond 64
    bits are written as floats. TypeError for values that JSON cannot represent.
    """
    if isinstance(value, Mapping):
        pairs = (f"{json.dumps(str(k), ensure_ascii=False)}:{to_json(v)}" for k, v in value.items())
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(to_json, value)) + "]"
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        value = float(value)
    if isinstance(value, float):
        return _float_json(value)
    return json.dumps(value, ensure_ascii=False)


def _float_json(value: float) -> str:
    if not math.isfinite(value):
        raise TypeError(f"{value} has no JSON form")
    text = repr(value)
    if 1e-5 <= abs(value) < 1e-4:  # repr changes to an exponent one digit earlier
        digits, _, _ = text.lstrip("-").partition("e")
        return ("-" if value < 0 else "") + "0.0000" + digits.replace(".", "")
    return re.sub(r"e([+-]?)0*", lambda m: "e" + m[1].replace("+", ""), text)
