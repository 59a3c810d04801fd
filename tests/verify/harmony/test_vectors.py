"""The Harmony part of the vectors: its values, its judge, and readers in other languages."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest

from gptoss_ref.chat import (
    HarmonyParser,
    TextDelta,
    o200k_harmony,
    parse,
    render_conversation,
    render_conversation_for_training,
)
from gptoss_ref.cli import main
from gptoss_ref.errors import GptOssError, HarmonyError
from gptoss_ref.verify.rendering import conversation_from_data, rendering_bug
from gptoss_ref.verify.vectors import check_harmony, harmony_vectors, suite_files
from tests.support import harmony_vectors as generator

EXAMPLES = Path(__file__).parents[3] / "examples"
CASES = harmony_vectors()["cases"]


def messages_of(case):
    return conversation_from_data(
        {"messages": case["input"]["messages"], "format": "harmony"}
    ).messages


def ours(case):
    """What this package answers."""
    tokenizer, given = o200k_harmony(), case["input"]
    if case["operation"] == "tokenize":
        return {"ids": tokenizer.encode(given["text"])}
    if case["operation"] == "render":
        training = given["state"] == "training"
        render = render_conversation_for_training if training else render_conversation
        return {"ids": render(messages_of(case), tokenizer, history="answered")}
    parser = HarmonyParser(tokenizer)
    events = [parser.feed(token) for token in given["ids"]]
    parser.finish()
    if case["operation"] == "stream":
        return {
            "deltas": ["".join(e.text for e in es if isinstance(e, TextDelta)) for es in events]
        }
    try:
        parse(given["ids"], tokenizer, strict=True)
        verdict = "accepted"
    except HarmonyError:
        verdict = "refused"
    return {"strict": verdict, "messages": [m.to_dict() for m in parser.messages]}


def test_the_file_is_what_openai_harmony_gives():
    assert generator.contents()["cases"] == CASES


def test_the_suite():
    assert len(CASES) >= 150
    assert len({case["id"] for case in CASES}) == len(CASES)
    jsonschema.validate(harmony_vectors(), json.loads(suite_files()["harmony.schema.json"]))
    for case in CASES:
        assert case["flags"]
        assert set(case["flags"]) <= set(harmony_vectors()["flags"])
        assert ("rule" in case) or case["source"] != "rule"


def test_this_package_is_right():
    judgement = check_harmony({case["id"]: ours(case) for case in CASES})
    assert judgement.ok, str(judgement)
    assert len(judgement.findings) == len(CASES)


@pytest.mark.parametrize("name", ["return-in-history", "properties-sorted", "call-ended-by-end"])
def test_a_flag_names_the_bug(name):
    case = next(case for case in CASES if name in case["flags"])
    training = case["input"]["state"] == "training"
    pieces = rendering_bug(name).apply().render(messages_of(case), training=training)
    judgement = check_harmony({case["id"]: {"text": "".join(map(str, pieces))}})
    wrong = next(one for one in judgement.findings if one.case is case)
    assert wrong.verdict == "wrong"
    assert wrong.causes == (name,)


def test_wrong_answers():
    for operation, answer, says in (
        ("tokenize", {"ids": [1]}, "ids at 0"),
        ("tokenize", {"ids": "x"}, "expected list"),
        ("tokenize", {}, "no ids"),
        ("tokenize", 7, "expected an object"),
        ("render", {}, "no ids or text"),
        ("stream", {"deltas": []}, "deltas at 0"),
        ("parse", {}, "no strict"),
        ("parse", {"strict": "perhaps"}, "perhaps, expected"),
    ):
        case = next(case for case in CASES if case["operation"] == operation)
        found = next(f for f in check_harmony({case["id"]: answer}).findings if f.case is case)
        assert found.verdict != "right"
        assert says in found.note
    lost = next(case for case in CASES if case["expected"].get("kept"))
    answer = {"strict": "refused", "messages": []}
    found = next(f for f in check_harmony({lost["id"]: answer}).findings if f.case is lost)
    assert "is lost" in found.note
    with pytest.raises(GptOssError):
        check_harmony([])


def test_the_command_line(tmp_path, capsys):
    assert main(["vectors", str(tmp_path / "suite")]) == 0
    results = tmp_path / "results"
    results.mkdir()
    answers = {case["id"]: ours(case) for case in CASES if case["operation"] == "tokenize"}
    (results / "harmony.json").write_text(json.dumps(answers))
    capsys.readouterr()
    assert main(["vectors", "--check", str(results)]) == 0
    assert "tokenize" in capsys.readouterr().out
    wrong = copy.deepcopy(answers)
    wrong["tokenize-001"] = {"ids": [0]}
    (results / "harmony.json").write_text(json.dumps(wrong))
    assert main(["vectors", "--check", str(results), "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["ok"]
    (results / "harmony.json").write_text("{")
    assert main(["vectors", "--check", str(results)]) == 2


@pytest.fixture
def suite(tmp_path):
    for name, content in suite_files().items():
        if name.startswith("harmony"):
            (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
def test_the_reader_in_javascript(suite):
    reader = EXAMPLES / "vectors_js" / "harmony.mjs"
    done = subprocess.run(
        ["node", reader, suite, suite / "out"], capture_output=True, text=True, check=True
    )
    assert "parse: 33 of 33 right" in done.stdout
    assert main(["vectors", "--check", str(suite / "out")]) == 0


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_reader_in_c(suite):
    (suite / "out").mkdir()
    source = EXAMPLES / "vectors_c" / "harmony.c"
    subprocess.run(["cc", "-o", suite / "reader", source], check=True, capture_output=True)
    subprocess.run([suite / "reader", suite, suite / "out"], check=True, capture_output=True)
    assert main(["vectors", "--check", str(suite / "out")]) == 0
