r"""Training data: JSON lines with conversations, texts or tokens, as token ids and targets.

Each line holds one object, in one of these forms:

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"prompt": "…", "completion": "…"}      no chat format; only the completion is learnt
    {"text": "…"}                           no chat format; all of it is learnt
    {"tokens": [1, 2, 3], "learn": [0, 1, 1]}       token ids; "learn" is optional

Messages have the format of chat APIs: those of the assistant may have ``thinking`` (its analysis)
and ``tool_calls``; a tool's result has the ``name`` of its function or the ``tool_call_id`` of its
call. ``"weight": 0`` leaves an answer out of the loss. Messages may also have Harmony's ``channel``
and ``recipient``. Optional keys beside ``messages`` are ``reasoning`` (low, medium, high),
``instructions`` and ``tools``.

**The model learns** the text that it would write: the assistant's messages, each after its
``<|start|>assistant``. Harmony drops the analysis of earlier answers; such an answer is context and
is not learnt, because the model would learn to answer without analysis. An answer that ends a turn
is learnt with ``<|return|>`` at its end, although it ends with ``<|end|>`` in the history of the
next turn.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.chat.conversation import build_conversation
from gptoss_ref.chat.messages import Message
from gptoss_ref.chat.render import drop_analysis, has_function_tools, render_message
from gptoss_ref.chat.tokenizer import Tokenizer
from gptoss_ref.errors import GptOssError, HarmonyError

KINDS = ("messages", "prompt", "text", "tokens")
_KEYS = {
    "messages": {"messages", "reasoning", "instructions", "tools"},
    "prompt": {"prompt", "completion"},
    "text": {"text"},
    "tokens": {"tokens", "learn"},
}
_HARMONY = {"channel", "recipient", "content_type"}
_API = {"role", "content", "thinking", "tool_calls", "tool_call_id", "name", "weight"}


class DataError(GptOssError):
    """Training data that cannot be used; the message names the file and the line."""


@dataclass(frozen=True, eq=False)
class Example:
    """One training example.

    Attributes:
        tokens: (T,) ids, from position 0.
        targets: (T,) the id that each position should predict.
        mask: (T,) True for the targets that are learnt.
        source: file and line, for error messages.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    mask: NDArray[np.bool_]
    source: str = "example"

    @property
    def count(self) -> int:
        """Number of targets that are learnt."""
        return int(self.mask.sum())


def read_jsonl(path: str | Path, tokenizer: Tokenizer, *, context: int) -> list[Example]:
    """The examples of a file, one for each line; empty lines are skipped.

    Args:
        path: a file of JSON lines in UTF-8.
        tokenizer: of the model.
        context: largest number of tokens in an example, ``config.max_position_embeddings``.

    Raises:
        DataError: a line is not such an object, is too long, or has nothing to learn (the message
            has its number); or the file cannot be read, or holds no example.
    """
    path = Path(path)
    examples = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    source = f"{path}: line {number}"
                    examples.append(example(_object(line, source), tokenizer, context, source))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if not examples:
        raise DataError(f"{path}: holds no examples: expected JSON lines")
    return examples


def _object(line: bytes, source: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_once)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError as error:  # the tokenizer would learn U+FFFD in its place
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(f"{source}: {half} is half of a surrogate pair: expected both") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{source}: not JSON: {error.msg} at character {error.pos + 1}") from None
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{source}: expected a JSON object, not {type(value).__name__}")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object, each of whose keys must occur once: of two texts one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DataError(f"key {next(k for k in keys if keys.count(k) > 1)!r} appears twice")
    return found


def example(
    data: Mapping[str, Any], tokenizer: Tokenizer, context: int, source: str = "example"
) -> Example:
    """The Example of one object, in one of the forms above.

    Raises:
        DataError: the object has none of the four forms, is longer than ``context``, or has nothing
            to learn.
    """
    kinds = [kind for kind in KINDS if kind in data]
    if len(kinds) != 1:
        raise DataError(
            f"{source}: has {' and '.join(kinds) or 'none of them'}: expected one of "
            f"{', '.join(KINDS)}"
        )
    (kind,) = kinds
    unknown = sorted(set(data) - _KEYS[kind])
    if unknown:
        raise DataError(
            f"{source}: unknown key {unknown[0]!r}: expected {', '.join(sorted(_KEYS[kind]))}"
        )
    try:
        tokens, targets, learnt = _MAKERS[kind](data, tokenizer)
    except (HarmonyError, DataError) as error:
        raise DataError(f"{source}: {error}") from None
    if len(tokens) > context:
        raise DataError(
            f"{source}: {len(tokens)} tokens: expected at most {context}, the model's context"
        )
    # position t predicts token t + 1: shift both by one
    mask = np.array([*learnt[1:], False], bool)
    if not mask.any():
        raise DataError(f"{source}: nothing to learn: expected at least one token to learn")
    return Example(np.array(tokens, np.int64), np.array([*targets[1:], 0], np.int64), mask, source)


Made = tuple[Sequence[int], Sequence[int], Sequence[bool]]
"""Tokens, targets and mask before the shift by one position, (T,) each."""


def _from_messages(data: Mapping[str, Any], tokenizer: Tokenizer) -> Made:
    messages, weights = _messages(data)
    last = max((i for i, m in enumerate(messages) if m.role == "user"), default=0)
    kept = [*drop_analysis(messages[:last], "answered"), *messages[last:]]
    functions = has_function_tools(messages)
    start = [tokenizer.special_id("start"), *tokenizer.encode("assistant")]
    tokens: list[int] = []
    targets: list[int] = []
    learnt: list[bool] = []
    position = 0  # in `messages`, of the message that is being rendered
    dropped = False  # whether the analysis before the next answer was dropped
    for message in kept:
        while messages[position] is not message:
            dropped = True
            position += 1
        position += 1
        part = render_message(message, tokenizer, has_function_tools=functions)
        aim = list(part)
        own = message.role == "assistant" and weights[id(message)] and not dropped
        if own and message.channel in (None, "final") and message.recipient is None:
            aim[-1] = tokenizer.special_id("return")
        if message.role == "user":
            dropped = False
        given = len(start) if message.role == "assistant" else len(part)
        learnt += [False] * given + [own] * (len(part) - given)
        if own and tokens and learnt[len(tokens) - 1]:  # no new prompt: the model wrote the opening
            learnt[len(tokens) : len(tokens) + given] = [True] * given
        tokens += part
        targets += aim
    return tokens, targets, learnt


def _messages(data: Mapping[str, Any]) -> tuple[list[Message], dict[int, bool]]:
    """The conversation with its system and developer messages, and which messages are learnt."""
    given = data["messages"]
    if not isinstance(given, list) or not given:
        raise DataError("messages must be a list of objects")
    names: dict[str, str] = {}  # names of functions, by call id
    messages: list[Message] = []
    weights: dict[int, bool] = {}
    options = {key: data.get(key) for key in ("reasoning", "instructions")}
    for number, entry in enumerate(given, 1):
        try:
            made = list(_message(entry, names))
        except (HarmonyError, DataError) as error:
            raise DataError(f"message {number}: {error}") from None
        weight = entry.get("weight", 1)
        if isinstance(weight, bool) or weight not in (0, 1):
            raise DataError(f"message {number}: weight must be 0 or 1, not {weight!r}")
        plain = not _HARMONY & set(entry) and isinstance(entry.get("content"), str)
        if number <= 2 and plain and entry["role"] in ("system", "developer"):
            # the system prompt of chat APIs is Harmony's developer message
            if options["instructions"] is not None:
                raise DataError(f"message {number}: instructions are given twice")
            options["instructions"] = entry["content"]
            continue
        messages += made
        weights |= {id(message): bool(weight) for message in made}
    tools = data.get("tools") or ()
    if not isinstance(tools, list | tuple):
        raise DataError("tools must be a list of objects")
    for key, value in options.items():
        if value is not None and not isinstance(value, str):
            raise DataError(f"{key} must be text, not {value!r}")
    whole = build_conversation(messages, tools=tools, **options)
    return whole, {id(message): False for message in whole} | weights


def _message(entry: Any, names: dict[str, str]) -> Iterator[Message]:
    """The Harmony messages for one message of a chat API; adds its tool calls to ``names``."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("role"), str):
        raise DataError("expected an object with role and content")
    if _HARMONY & set(entry) or isinstance(entry.get("content"), Mapping):
        yield Message.from_dict({k: v for k, v in entry.items() if k != "weight"})
        return
    unknown = sorted(set(entry) - _API)
    if unknown:
        raise DataError(f"unknown key {unknown[0]!r}: expected {', '.join(sorted(_API))}")
    role, content = entry["role"], entry.get("content")
    thinking, calls = entry.get("thinking"), entry.get("tool_calls") or []
    if not isinstance(content, str) and not (content is None and calls):
        raise DataError(f"content must be text, not {content!r}")
    if role != "assistant":
        if thinking is not None or calls:
            raise DataError(f"thinking and tool_calls belong to the assistant, not to {role}")
        if role != "tool":
            yield Message(role, content or "")
            return
        name = entry.get("name") or names.get(str(entry.get("tool_call_id")))
        if not isinstance(name, str):
            raise DataError("a tool's result needs name (of its function) or tool_call_id")
        yield Message.tool(name if "." in name else f"functions.{name}", content or "")
        return
    if thinking is not None and not isinstance(thinking, str):
        raise DataError(f"thinking must be text, not {thinking!r}")
    if thinking:
        yield Message.assistant(thinking, "analysis")
    if not isinstance(calls, list):
        raise DataError("tool_calls must be a list")
    if content:  # beside a call, this is text for the user
        yield Message.assistant(content, "commentary" if calls else "final")
    elif not calls:
        yield Message.assistant("")
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError("a tool call needs a function with name and arguments")
        arguments = function.get("arguments", {})
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        names[str(call.get("id"))] = function["name"]
        yield Message.call(f"functions.{function['name']}", text)


def _from_completion(data: Mapping[str, Any], tokenizer: Tokenizer) -> Made:
    prompt, completion = (_text(data, key) for key in ("prompt", "completion"))
    given, own = tokenizer.encode(prompt), tokenizer.encode(completion)
    own = [*own, tokenizer.special_id("return")]
    tokens = [*given, *own]
    return tokens, tokens, [False] * len(given) + [True] * len(own)


def _from_text(data: Mapping[str, Any], tokenizer: Tokenizer) -> Made:
    tokens = tokenizer.encode(_text(data, "text"))
    return tokens, tokens, [True] * len(tokens)


def _from_tokens(data: Mapping[str, Any], tokenizer: Tokenizer) -> Made:
    tokens, learn = data["tokens"], data.get("learn")
    if not isinstance(tokens, list) or not all(type(t) is int for t in tokens):
        raise DataError("tokens must be a list of integers")
    wrong = [t for t in tokens if not 0 <= t < tokenizer.vocab_size]
    if wrong:
        raise DataError(
            f"token {wrong[0]} is out of range: expected 0 to {tokenizer.vocab_size - 1}"
        )
    learn = [1] * len(tokens) if learn is None else learn
    zeros_and_ones = isinstance(learn, list) and all(x in (0, 1) for x in learn)
    if not zeros_and_ones or len(learn) != len(tokens):
        raise DataError(f"learn must be a list of {len(tokens)} zeros and ones, one for each token")
    return tokens, tokens, [bool(own) for own in learn]


def _text(data: Mapping[str, Any], key: str) -> str:
    if not isinstance(data.get(key), str):
        raise DataError(f"{key} must be text, not {data.get(key)!r}")
    return str(data[key])


_MAKERS: dict[str, Callable[[Mapping[str, Any], Tokenizer], Made]] = {
    "messages": _from_messages,
    "prompt": _from_completion,
    "text": _from_text,
    "tokens": _from_tokens,
}
