"""Training data: what of a line is learnt, and what is said of a line that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_ref.chat import DeveloperContent, Message, SystemContent, Tokenizer, small_harmony
from gptoss_ref.chat import render_conversation as render
from gptoss_ref.training import DataError, Example, example, read_jsonl

TOKENIZER = small_harmony(256)  # one token a byte, and the special tokens
CONTEXT = 4096


def made(data: dict[str, Any]) -> Example:
    return example(data, TOKENIZER, CONTEXT)


def learnt(data: dict[str, Any]) -> list[str]:
    """The runs of targets that are learnt, as text."""
    row = made(data)
    runs: list[list[int]] = []
    for t in np.flatnonzero(row.mask):
        if not runs or not row.mask[t - 1]:
            runs.append([])
        runs[-1].append(int(row.targets[t]))
    return [TOKENIZER.decode(run) for run in runs]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


FINAL = "<|channel|>final<|message|>"


def test_the_tokens_are_the_conversation_as_it_is_rendered() -> None:
    row = made({"messages": [user("Hi"), said("Ho")], "reasoning": "high"})
    system = Message.system(SystemContent(reasoning_effort="high"))
    messages = [system, Message.user("Hi"), Message.assistant("Ho")]
    assert row.tokens.tolist() == render(messages, TOKENIZER, None)
    assert len(row.targets) == len(row.mask) == len(row.tokens)
    assert row.targets[:-2].tolist() == row.tokens[1:-1].tolist()


def test_an_answer_is_learnt_after_its_opening_and_up_to_return() -> None:
    assert learnt({"messages": [user("Hi"), said("Ho")]}) == [f"{FINAL}Ho<|return|>"]


def test_each_answer_of_a_conversation_ends_with_return_though_the_history_has_end() -> None:
    data = {"messages": [user("1"), said("a"), user("2"), said("b")]}
    assert learnt(data) == [f"{FINAL}a<|return|>", f"{FINAL}b<|return|>"]
    assert TOKENIZER.special_id("return") not in made(data).tokens


def test_thoughts_are_learnt_with_the_opening_of_the_answer_behind_them() -> None:
    assert learnt({"messages": [user("1"), said("b", thinking="t")]}) == [
        f"<|channel|>analysis<|message|>t<|end|><|start|>assistant{FINAL}b<|return|>"
    ]


def test_an_earlier_answer_without_its_thoughts_is_context_only() -> None:
    data = {
        "messages": [user("1"), said("a", thinking="s"), user("2"), said("b"), user("3"),
                     said("c", thinking="t")]
    }  # fmt: skip
    assert learnt(data) == [
        f"{FINAL}b<|return|>",
        f"<|channel|>analysis<|message|>t<|end|><|start|>assistant{FINAL}c<|return|>",
    ]
    assert f"assistant{FINAL}a<|end|>" in TOKENIZER.decode(made(data).tokens)


def test_a_weight_of_zero_leaves_an_answer_out() -> None:
    data = {"messages": [user("1"), said("a", weight=0), user("2"), said("b", weight=1)]}
    assert learnt(data) == [f"{FINAL}b<|return|>"]


def test_what_chat_apis_call_the_system_prompt_is_the_developer_message() -> None:
    given = made({"messages": [{"role": "system", "content": "Be kind."}, user("1"), said("a")]})
    also = made({"messages": [user("1"), said("a")], "instructions": "Be kind."})
    assert given.tokens.tolist() == also.tokens.tolist()
    system = Message.system(SystemContent())
    developer = Message.developer(DeveloperContent("Be kind."))
    messages = [system, developer, Message.user("1"), Message.assistant("a")]
    assert given.tokens.tolist() == render(messages, TOKENIZER, None)


TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}},
}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}


def test_calls_are_learnt_and_answers_of_tools_are_not() -> None:
    data = {
        "messages": [
            user("1+1"),
            {"role": "assistant", "content": None, "thinking": "call", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
            said("two"),
        ],
        "tools": [TOOL],
    }
    assert learnt(data) == [
        "<|channel|>analysis<|message|>call<|end|><|start|>assistant to=functions.add"
        '<|channel|>commentary <|constrain|>json<|message|>{"a":1}<|call|>',
        f"{FINAL}two<|return|>",
    ]
    text = TOKENIZER.decode(made(data).tokens)
    assert "<|start|>functions.add to=assistant<|channel|>commentary<|message|>2<|end|>" in text
    assert "Calls to these tools must go to the commentary channel: 'functions'." in text


def test_harmonys_own_messages() -> None:
    """The same conversation in both spellings."""
    api = {
        "messages": [user("q"), said("a", thinking="t")],
        "reasoning": "low",
    }
    own = {
        "messages": [
            {"role": "system", "content": {"reasoning_effort": "low"}},
            {"role": "user", "content": "q"},
            {"role": "assistant", "channel": "analysis", "content": "t"},
            {"role": "assistant", "channel": "final", "content": "a"},
        ]
    }
    for field in ("tokens", "targets", "mask"):
        assert getattr(made(api), field).tolist() == getattr(made(own), field).tolist()


def test_plain_texts() -> None:
    assert learnt({"text": "abc"}) == ["bc"]  # nothing predicts the first
    assert learnt({"prompt": "ab", "completion": "cd"}) == ["cd<|return|>"]
    assert learnt({"prompt": "", "completion": "cd"}) == ["d<|return|>"]


def test_ready_tokens() -> None:
    row = made({"tokens": [70, 71, 72, 73], "learn": [1, 0, 1, 1]})
    assert row.tokens.tolist() == [70, 71, 72, 73]
    assert row.targets[row.mask].tolist() == [72, 73]
    assert row.count == 2
    assert made({"tokens": [70, 71, 72]}).count == 2


BAD: list[tuple[bytes | dict[str, Any], str]] = [
    (b"{", "not JSON"),
    (b"[1]", "expected a JSON object, not list"),
    (b'{"text": "\xff"}', "not UTF-8 at byte 10"),
    (b"[" * 100_000, "not JSON"),
    (b'{"text": "a", "text": "b c"}', "key 'text' appears twice"),
    (rb'{"text": "a\ud83d\ude00 b\ud800"}', r"\ud800 is half of a surrogate pair: expected both"),
    (rb'{"messages": [{"role": "\udfff", "content": ""}]}', r"\udfff is half of a surrogate pair"),
    ({}, "none of them: expected one of messages, prompt, text, tokens"),
    ({"text": "a", "tokens": [1]}, "has text and tokens: expected one of"),
    ({"text": "ab", "weight": 1}, "unknown key 'weight': expected text"),
    ({"text": 3}, "text must be text, not 3"),
    ({"text": "a"}, "nothing to learn"),
    ({"prompt": "a"}, "completion must be text, not None"),
    ({"tokens": [1, 10**9]}, "token 1000000000 is out of range: expected 0 to"),
    ({"tokens": [1, 2.0]}, "tokens must be a list of integers"),
    ({"tokens": [1, 2], "learn": [1]}, "learn must be a list of 2 zeros and ones"),
    ({"tokens": [1, 2], "learn": [1, 0]}, "nothing to learn"),
    ({"tokens": [1, 2], "learn": [[1], 0]}, "learn must be a list of 2 zeros and ones"),
    ({"text": "a" * (CONTEXT + 1)}, f"{CONTEXT + 1} tokens: expected at most {CONTEXT}"),
    ({"messages": []}, "messages must be a list of objects"),
    ({"messages": ["hi"]}, "message 1: expected an object with role and content"),
    ({"messages": [user("1"), {"role": "bot", "content": "x"}]}, "message 2: message role 'bot'"),
    ({"messages": [user("1"), said("a", wieght=0)]}, "message 2: unknown key 'wieght'"),
    ({"messages": [user("1"), said("a", weight=2)]}, "message 2: weight must be 0 or 1, not 2"),
    ({"messages": [user("1")]}, "nothing to learn"),
    ({"messages": [user("1"), said(None)]}, "message 2: content must be text, not None"),
    ({"messages": [user("1") | {"thinking": "x"}]}, "belong to the assistant, not to user"),
    ({"messages": [user("1"), said("a")], "reasoning": "huge"}, "reasoning effort 'huge'"),
    ({"messages": [user("1"), said("a")], "reasoning": 3}, "reasoning must be text, not 3"),
    ({"messages": [user("1"), said("a")], "tools": "x"}, "tools must be a list of objects"),
    ({"messages": [user("1"), {"role": "tool", "content": "2"}]}, "needs name (of its function)"),
    ({"messages": [user("1"), said("", tool_calls=[{}])]}, "a tool call needs a function"),
    ({"messages": [user("1"), said("a", thinking=4)]}, "thinking must be text, not 4"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[m for _, m in BAD])
def test_a_broken_line_is_named_by_its_number(
    line: bytes | dict[str, Any], message: str, tmp_path: Path
) -> None:
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    file = tmp_path / "data.jsonl"
    file.write_bytes(b'{"text": "fine"}\n\n' + raw + b'\n{"text": "fine"}\n')
    with pytest.raises(DataError) as caught:
        read_jsonl(file, TOKENIZER, context=CONTEXT)
    assert str(caught.value).startswith(f"{file}: line 3: ")
    assert message in str(caught.value)


def test_files_that_hold_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n \n")
    with pytest.raises(DataError, match="holds no examples"):
        read_jsonl(empty, TOKENIZER, context=CONTEXT)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_jsonl(tmp_path / "none", TOKENIZER, context=CONTEXT)
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_jsonl(tmp_path, TOKENIZER, context=CONTEXT)


def test_a_file_with_a_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}\r\n')
    rows = read_jsonl(file, TOKENIZER, context=CONTEXT)
    assert [TOKENIZER.decode(row.tokens) for row in rows] == ["one", "two"]
    assert rows[1].source == f"{file}: line 2"


def test_the_tokenizer_of_a_released_model_is_as_good() -> None:
    from gptoss_ref.chat import o200k_harmony

    tokenizer: Tokenizer = o200k_harmony()
    row = example({"messages": [user("Hi"), said("Ho there")]}, tokenizer, CONTEXT)
    assert tokenizer.decode(row.targets[row.mask]) == f"{FINAL}Ho there<|return|>"
