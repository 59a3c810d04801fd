"""Tools that a model may call, and their description in a prompt.

Every tool is in a namespace. A namespace with functions is written as TypeScript (see typescript.py
for the types); one without functions, such as `python`, has only its description.

    # Tools

    ## functions

    namespace functions {

    // Adds two numbers.
    type add = (_: {
    a: number,
    b: number,
    }) => any;

    } // namespace functions
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_ref.chat.typescript import typescript
from gptoss_ref.errors import HarmonyError

# Limits of a schema. openai-harmony reads JSON of at most 128 levels (serde_json).
_DEEPEST = 128
_LARGEST = 100_000

_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Tool:
    """A function: name, purpose, and the JSON schema of its parameters (None: it takes none).

    The name consists of letters (a to z), digits, `_`, `-` and `.`, because white space would end
    it in a header. HarmonyError for any other name, and for an invalid schema.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise HarmonyError(f"tool name {self.name!r}: expected a non-empty text")
        if not _TOOL_NAME.fullmatch(self.name):
            raise HarmonyError(
                f"tool name {self.name!r}: expected only letters (a to z), digits, '_', '-' and '.'"
            )
        if self.parameters is None:
            return
        if not isinstance(self.parameters, Mapping):
            raise HarmonyError(f"tool {self.name}: parameters must be a JSON schema object")
        properties = self.parameters.get("properties", {})
        if not isinstance(properties, Mapping):
            raise HarmonyError(
                f"tool {self.name}: properties of its parameters must be an object of schemas"
            )
        for key, schema in properties.items():
            if not isinstance(schema, (Mapping, bool)):  # true and false are schemas too
                raise HarmonyError(f"tool {self.name}: parameter {key!r} must be a schema object")


@dataclass(frozen=True)
class ToolNamespace:
    """A group of tools. A call names the namespace and the tool: `functions.add`.

    HarmonyError if two tools have the same name.
    """

    name: str
    description: str | None = None
    tools: Sequence[Tool] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tools", tuple(self.tools))
        for name, times in Counter(tool.name for tool in self.tools).items():
            if times > 1:
                raise HarmonyError(
                    f"tool {name!r} given {times} times in the namespace {self.name!r}"
                )


def tools_section(namespaces: Iterable[ToolNamespace]) -> str:
    """The `# Tools` section, namespaces sorted by name. Source: openai-harmony 0.0.8."""
    by_name = {space.name: space for space in namespaces}
    return "\n\n".join(["# Tools", *(_namespace(by_name[name]) for name in sorted(by_name))])


def _lines(text: str) -> list[str]:
    """The lines of a text, which end with LF or CRLF; no empty line after a final newline."""
    lines = io.StringIO(text, newline="\n")
    return [line[:-1].removesuffix("\r") if line.endswith("\n") else line for line in lines]


def _namespace(space: ToolNamespace) -> str:
    out = [f"## {space.name}\n"]
    comment = "// " if space.tools else ""
    out += [comment + line for line in _lines(space.description or "")]
    if space.tools:
        out.append(f"namespace {space.name} {{\n")
        for tool in space.tools:
            out += ["// " + line for line in _lines(tool.description)]
            takes = "" if tool.parameters is None else f"_: {_parameters_text(tool)}"
            out.append(f"type {tool.name} = ({takes}) => any;\n")
        out.append(f"}} // namespace {space.name}")
    return "\n".join(out)


def _parameters_text(tool: Tool) -> str:
    """The type of a tool's parameters. HarmonyError for a cyclic, too large or non-JSON schema."""
    values = 0
    inside: set[int] = set()  # ids of the objects and lists that contain the value

    def visit(value: Any) -> None:
        nonlocal values
        values += 1
        if not isinstance(value, (Mapping, list, tuple)):
            return
        if id(value) in inside:
            raise HarmonyError(f"tool {tool.name}: the schema of its parameters contains itself")
        if len(inside) == _DEEPEST:
            raise HarmonyError(
                f"tool {tool.name}: the schema of its parameters is nested too deeply, "
                f"expected at most {_DEEPEST} levels"
            )
        if values > _LARGEST:
            raise HarmonyError(
                f"tool {tool.name}: the schema of its parameters is too large, "
                f"expected at most {_LARGEST} values"
            )
        inside.add(id(value))
        for inner in value.values() if isinstance(value, Mapping) else value:
            visit(inner)
        inside.remove(id(value))

    visit(tool.parameters)
    try:
        return typescript(tool.parameters)
    except TypeError as error:
        raise HarmonyError(f"tool {tool.name}: the schema of its parameters: {error}") from None


def python() -> ToolNamespace:
    """The built-in `python` tool, with the description that the models were trained on."""
    return ToolNamespace("python", _PYTHON)


def browser() -> ToolNamespace:
    """The built-in `browser` tool (search, open, find), as the models were trained on it."""
    text, number = {"type": "string"}, {"type": "number"}
    last = {"type": "number", "default": -1}
    search = {"query": text, "topn": number | {"default": 10}, "source": text}
    opened = {
        "id": {"type": ["number", "string"], "default": -1},
        "cursor": last,
        "loc": last,
        "num_lines": last,
        "view_source": {"type": "boolean", "default": False},
        "source": text,
    }
    find = {"pattern": text, "cursor": last}
    return ToolNamespace(
        "browser",
        _BROWSER,
        (
            Tool("search", _SEARCH, _parameters(search, "query")),
            Tool("open", _OPEN, _parameters(opened)),
            Tool("find", _FIND, _parameters(find, "pattern")),
        ),
    )


def _parameters(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


# The texts below are data: the models were trained on exactly these (openai-harmony, src/chat.rs).
_PYTHON = (
    "Use this tool to execute Python code in your chain of thought. The code will not be shown to "
    "the user. This tool should be used for internal reasoning, but not for code that is intended "
    "to be visible to the user (e.g. when creating plots, tables, or files).\n\n"
    "When you send a message containing Python code to python, it will be executed in a stateful "
    "Jupyter notebook environment. python will respond with the output of the execution or time "
    "out after 120.0 seconds. The drive at '/mnt/data' can be used to save and persist user files. "
    "Internet access for this session is UNKNOWN. Depends on the cluster."
)
_BROWSER = (
    "Tool for browsing.\n"
    "The `cursor` appears in brackets before each browsing display: `[{cursor}]`.\n"
    "Cite information from the tool using the following format:\n"
    "`【{cursor}†L{line_start}(-L{line_end})?】`, for example: `【6†L9-L11】` or `【8†L3】`.\n"
    "Do not quote more than 10 words directly from the tool output.\n"
    "sources=web (default: web)"
)
_SEARCH = "Searches for information related to `query` and displays `topn` results."
_OPEN = (
    "Opens the link `id` from the page indicated by `cursor` starting at line number `loc`, "
    "showing `num_lines` lines.\n"
    "Valid link ids are displayed with the formatting: `【{id}†.*】`.\n"
    "If `cursor` is not provided, the most recent page is implied.\n"
    "If `id` is a string, it is treated as a fully qualified URL associated with `source`.\n"
    "If `loc` is not provided, the viewport will be positioned at the beginning of the document or "
    "centered on the most relevant passage, if available.\n"
    "Use this function without `id` to scroll to a new location of an opened page."
)
_FIND = "Finds exact matches of `pattern` in the current page, or the page given by `cursor`."
