"""Chat templates: a correct one, wrong ones, and those that do what they must not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptoss_ref.cli import main
from gptoss_ref.errors import HarmonyError
from gptoss_ref.verify.rendering import conversation_from_data
from gptoss_ref.verify.rendering import template as module
from gptoss_ref.verify.rendering.template import (
    check_template,
    check_template_file,
    check_tokenizer_folder,
    render_template,
    variables,
)

TINY = Path(module.__file__).parents[2] / "data" / "tiny"
HELLO = [
    conversation_from_data(
        {
            "title": "hello",
            "reasoning_effort": "high",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello.", "reasoning_content": "Easy."},
                {"role": "user", "content": "Bye"},
            ],
        }
    )
]
# right for conversations without tools, written for this test
RIGHT = """
{%- set told = namespace(done=false) -%}
{{- '<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\\n' -}}
{{- 'Knowledge cutoff: 2024-06\\nCurrent date: ' + strftime_now('%Y-%m-%d') -}}
{{- '\\n\\nReasoning: ' + (reasoning_effort or 'medium') + '\\n\\n' -}}
{{- '# Valid channels: analysis, commentary, final. ' -}}
{{- 'Channel must be included for every message.<|end|>' -}}
{%- for message in messages -%}
  {%- if message.role in ('system', 'developer') -%}
    {{- '<|start|>developer<|message|># Instructions\\n\\n' + message.content + '<|end|>' -}}
  {%- elif message.role == 'assistant' -%}
    {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' -}}
  {%- else -%}
    {{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif -%}
"""


def test_a_right_template():
    assert check_template(RIGHT, HELLO).ok


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("# Valid channels", "# Channels", None),
        ("reasoning_effort or 'medium'", "'medium'", "effort-ignored"),
        ("'<|start|>developer<", "'<|start|>system<", "developer-message-as-system"),
        ("# Instructions\\n\\n", "", "instructions-heading-missing"),
        ("<|channel|>final", "", "final-without-channel"),
        ("{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>'",
         "{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|return|>'",
         "return-in-history"),
        ("{{ '<|start|>assistant' }}", "", "generation-prompt-missing"),
        ("{%- set told", "{{- '<|startoftext|>' -}}\n{%- set told", "bos-added"),
    ],
)  # fmt: skip
def test_wrong_templates(old, new, name):
    wrong = RIGHT.replace(old, new)
    assert wrong != RIGHT
    report = check_template(wrong, HELLO)
    assert not report.ok
    assert [cause.name for cause in report.causes] == ([name] if name else [])
    assert bool(report.unexplained) is (name is None)


def test_the_template_of_tiny_says_what_it_refuses(capsys):
    report = check_template_file(TINY / "chat_template.jinja")
    assert "one tool" in dict(report.refused)
    assert {form.name for form in report.forms} == {"date-missing"}
    assert main(["harmony", "check", "--template", str(TINY / "chat_template.jinja")]) == 1
    assert "Refused" in capsys.readouterr().out


def test_a_tokenizers_folder_tells_special_text(tmp_path):
    names = {cause.name for cause in check_tokenizer_folder(TINY).causes}
    assert "special-text-turned-special" in names
    with pytest.raises(HarmonyError, match=r"neither chat_template.jinja nor"):
        check_tokenizer_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(HarmonyError, match="has no chat_template"):
        check_tokenizer_folder(tmp_path)
    named = [{"name": "default", "template": RIGHT}, {"name": "x", "template": "y"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert check_tokenizer_folder(tmp_path, HELLO).ok


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ messages.__class__.__mro__ }}", "is unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "is unsafe"),
        ("{{ open('/tmp/x', 'w') }}", "renders none.*'open' is undefined"),
        ("{% include 'file' %}", "renders none"),
        ("{% if %}", "line 1"),
        ("{% set x = messages.append(1) %}", "is unsafe|renders none"),
        (
            "{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}",
            "more than 1048576 characters",
        ),
        ("{{ 'x' * 2000000000 }}", "more than"),
        ("{{ ('%' + '2000000000d') | format(1) }}", "more than 1024 MiB"),
        ("{{ range(999999999) | list }}", "renders none|is unsafe|memory"),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "renders none|crashed"),
    ],
)
def test_templates_that_do_what_they_must_not(template, says, tmp_path):
    with pytest.raises(HarmonyError, match=says):
        check_template(template, HELLO)
    assert list(tmp_path.iterdir()) == []


def test_a_conversation_of_another_day_and_broken_arguments():
    """A template is not told the date. Arguments that are no JSON reach it as text."""
    (said,) = HELLO
    report = check_template(RIGHT, [conversation_from_data({**said.chat, "date": "1999-12-31"})])
    assert report.ok, str(report)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{bad"}}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call]}]
    seen = variables(conversation_from_data(messages), True)["messages"][1]["tool_calls"][0]
    assert seen["function"]["arguments"] == "{bad"


def test_a_template_that_loops_is_ended():
    nested = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(HarmonyError, match="takes more than 1 seconds: does it loop"):
        check_template(nested, HELLO, seconds=1)


def test_what_the_template_is_given():
    seen = render_template("{{ strftime_now('%Y') }}{{ {'é': 1} | tojson }}{{ x }}", [{"x": "<"}])
    assert seen == [{"text": '2026{"é": 1}<'}]


def test_files_that_cannot_be_read(tmp_path, capsys):
    assert main(["harmony", "check", "--template", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "large").write_bytes(b"x" * (1 << 21))
    with pytest.raises(HarmonyError, match="more than 1 MiB"):
        check_template_file(tmp_path / "large")
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(HarmonyError, match="not UTF-8"):
        check_template_file(tmp_path / "latin")
    own = conversation_from_data([{"role": "user", "content": "Hi", "channel": "final"}])
    with pytest.raises(HarmonyError, match="Harmony's format"):
        check_template(RIGHT, [own])
