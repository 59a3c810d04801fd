"""Conversations as JSON, and the command's verbs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from docs._generate import harmony_page
from gptoss_ref.chat import (
    Message,
    o200k_harmony,
    render_conversation,
    small_harmony,
    tokenizer_json,
)
from gptoss_ref.cli import main
from gptoss_ref.errors import HarmonyError
from gptoss_ref.verify.rendering import conversation_from_data, read_conversation

CHAT = {
    "date": "2025-06-28",
    "tools": [{"type": "function", "function": {"name": "now", "description": "The time."}}],
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "Time?"},
        {
            "role": "assistant",
            "reasoning": "Look.",
            "content": "One moment.",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "now"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ],
}


def rendered(data):
    return render_conversation(conversation_from_data(data).messages, o200k_harmony())


def test_a_chat_becomes_harmony():
    said = conversation_from_data(CHAT)
    system, developer, user, thought, words, call, result = said.messages
    assert system.parts[0].conversation_start_date == "2025-06-28"
    assert developer.parts[0].instructions == "Be brief."
    assert [tool.name for tool in developer.parts[0].tools[0].tools] == ["now"]
    assert user == Message.user("Time?")
    assert thought == Message.assistant("Look.", "analysis")
    assert words == Message.assistant("One moment.", "commentary")
    assert call == Message.call("functions.now", "{}")
    assert result == Message.tool("functions.now", "noon")


def test_harmonys_own_form_stays_as_it_is():
    said = conversation_from_data(
        [
            {"role": "system", "content": "Be a pirate."},
            {"role": "assistant", "content": [{"type": "text", "text": "Arr"}], "channel": "final"},
        ]
    )
    assert said.chat is None
    assert said.messages == (Message.system("Be a pirate."), Message.assistant("Arr"))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "expected a list of messages"),
        ([], "at least one message"),
        ([7], "message 0: expected an object"),
        ([{"role": "nobody", "content": "x"}], "role 'nobody'"),
        ([{"role": "user", "content": 7}], "expected text, found int"),
        ([{"role": "user", "content": "x", "colour": 1}], "unknown field 'colour'"),
        ({"messages": [{"role": "user"}], "mesages": 1}, "unknown field 'mesages'"),
        ([{"role": "tool", "content": "x"}], "without tool_call_id"),
        ([{"role": "tool", "content": "x", "tool_call_id": "c"}], "no call before it has that id"),
        ([{"role": "assistant", "tool_calls": [{}]}], "expected a function"),
        ([{"role": "user", "content": [{"type": "image"}]}], "expected text"),
        ({"messages": [{"role": "user"}], "builtin_tools": ["x"]}, "expected browser or python"),
        ({"messages": [{"role": "user"}], "format": "x"}, "expected 'chat' or 'harmony'"),
        ({"messages": [{"role": "user"}], "reasoning_effort": "max"}, "reasoning effort 'max'"),
        ([{"role": "user", "channel": "x", "colour": 1}], "unknown field 'colour'"),
    ],
)
def test_what_is_no_conversation(data, says):
    with pytest.raises(HarmonyError, match=says):
        conversation_from_data(data)


def test_a_whole_request_in_the_older_form():
    function = {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}}
    call = {"name": "add", "arguments": '{"a": 1}'}
    data = {
        "model": "gpt-oss-20b",
        "temperature": 0,
        "functions": [function],
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, "function_call": call},
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": None, "refusal": "No.", "function_call": None},
        ],
    }
    text = o200k_harmony().decode(rendered(data))
    assert "type add = (_: {" in text
    assert 'to=functions.add<|channel|>commentary <|constrain|>json<|message|>{"a": 1}' in text
    assert "<|channel|>final<|message|>No.<|end|>" in text
    assert conversation_from_data(data).chat["tools"][0]["function"] == function
    with pytest.raises(HarmonyError, match="both 'tools' and 'functions'"):
        rendered(data | {"tools": [{"type": "function", "function": function}]})
    with pytest.raises(HarmonyError, match=r"message 0 \(user\): a call"):
        rendered([{"role": "user", "content": "q", "function_call": call}])


def test_schemas_in_a_circle_and_files_nested_too_deep(tmp_path):
    schema: dict = {"type": "object", "properties": {}}
    schema["properties"]["again"] = schema
    tool = {"name": "f", "description": "", "parameters": schema}
    with pytest.raises(HarmonyError):
        rendered(CHAT | {"tools": [tool]})
    (tmp_path / "deep.json").write_text('{"messages":' + "[" * 100_000)
    with pytest.raises(HarmonyError, match=r"deep\.json: (nested too deeply|not JSON)"):
        read_conversation(tmp_path / "deep.json")
    with pytest.raises(HarmonyError, match="No such file"):
        read_conversation(tmp_path / "none.json")


def test_the_verbs(tmp_path, capsys):
    file = tmp_path / "chat.json"
    file.write_text(json.dumps(CHAT))
    assert main(["harmony", "render", str(file)]) == 0
    text = capsys.readouterr().out
    said = conversation_from_data(CHAT)
    ids = render_conversation(said.messages, o200k_harmony(), history="answered")
    assert text == o200k_harmony().decode(ids) + "\n"
    assert main(["harmony", "render", "--ids", str(file)]) == 0
    (tmp_path / "ids").write_text(capsys.readouterr().out)
    assert [int(i) for i in (tmp_path / "ids").read_text().split()] == ids
    (tmp_path / "text").write_text(text)
    assert main(["harmony", "parse", str(tmp_path / "ids")]) == 0
    parsed = json.loads(capsys.readouterr().out)
    assert [m["role"] for m in parsed["messages"]][-3:] == ["assistant", "assistant", "tool"]
    assert main(["harmony", "diff", str(tmp_path / "ids"), str(tmp_path / "text")]) == 0
    assert "The same" in capsys.readouterr().out
    (tmp_path / "other").write_text(text.replace("commentary", "analysis"))
    assert main(["harmony", "diff", str(tmp_path / "ids"), str(tmp_path / "other")]) == 1
    capsys.readouterr()
    assert main(["harmony", "check", str(file), str(tmp_path / "text")]) == 0
    assert main(["harmony", "check", str(file), str(tmp_path / "other"), "--json"]) == 1
    assert not json.loads(capsys.readouterr().out.splitlines()[-1])["ok"]


def test_what_a_file_may_hold(tmp_path, capsys):
    """A server's answers are read as they come, and `parse` shows the texts of repairs."""
    file = tmp_path / "chat.json"
    file.write_text(json.dumps(CHAT))
    assert main(["harmony", "render", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    (tmp_path / "tokens").write_text(out)
    (tmp_path / "prompt").write_text(json.dumps({"prompt": json.loads(out)["text"]}))
    assert main(["harmony", "diff", str(tmp_path / "tokens"), str(tmp_path / "prompt")]) == 0
    assert main(["harmony", "check", str(file), str(tmp_path / "tokens")]) == 0
    capsys.readouterr()
    (tmp_path / "reply").write_text("<|channel|>final so it is<|message|>a<|return|>")
    assert main(["harmony", "parse", str(tmp_path / "reply")]) == 0
    assert json.loads(capsys.readouterr().out)["repairs"][0]["text"] == "so it is"
    (tmp_path / "reply").write_text('{"a": 1}')
    assert main(["harmony", "parse", str(tmp_path / "reply")]) == 0
    assert json.loads(capsys.readouterr().out)["messages"][0]["content"] == '{"a": 1}'
    for ids in ("[200006, -1]", "200006 9999999999999999"):
        (tmp_path / "ids").write_text(ids)
        assert main(["harmony", "parse", str(tmp_path / "ids")]) == 2
        assert "no such token" in capsys.readouterr().err


def test_a_conversation_from_the_standard_input():
    command = [sys.executable, "-m", "gptoss_ref", "harmony", "render", "-", "--ids"]
    done = subprocess.run(command, input=json.dumps(CHAT), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = conversation_from_data(CHAT)
    ids = render_conversation(said.messages, o200k_harmony(), history="answered")
    assert [int(token) for token in done.stdout.split()] == ids


def test_ids_of_another_tokenizer(tmp_path, capsys):
    file, ids = tmp_path / "chat.json", tmp_path / "ids"
    file.write_text(json.dumps(CHAT))
    tiny = small_harmony(400)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(tiny)))
    ids.write_text(str(render_conversation(read_conversation(file).messages, tiny)))
    assert main(["harmony", "check", str(file), str(ids), "--tokenizer", str(tmp_path)]) == 0
    assert main(["harmony", "check", str(file), str(ids)]) == 1


def test_a_special_token_spelt_out_is_told_from_other_merges(tmp_path, capsys):
    (tmp_path / "a").write_text(" ".join(map(str, o200k_harmony().encode("Hi <|end|> you"))))
    (tmp_path / "b").write_text("12194 220 200007 481")  # "Hi", " ", <|end|>, " you"
    assert main(["harmony", "diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert "as a special token in one and as ordinary" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        ["check", "--server", "http://127.0.0.1:9", "--live", "--tokenizer", "X"],
        ["check", "--template", "X", "--tokenizer", "X"],
        ["check"],
        ["check", "FILE"],
        ["render", "none.json"],
        ["parse", "none"],
        ["parse", "LATIN"],
        ["diff", "none", "none"],
        ["nothing"],
    ],
)
def test_bad_command_lines(argv, tmp_path, capsys):
    (tmp_path / "latin").write_bytes(b"\xe9\xff")
    (tmp_path / "chat.json").write_text(json.dumps(CHAT))
    names = {"FILE": "chat.json", "LATIN": "latin"}
    argv = [str(tmp_path / names[word]) if word in names else word for word in argv]
    assert main(["harmony", *argv]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_page_is_the_catalogue():
    assert harmony_page.PAGE.read_text(encoding="utf-8") == harmony_page.page(), (
        "run python -m docs._generate.harmony_page"
    )
