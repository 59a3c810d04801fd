"""Every rendering bug is named first, alone and by its name; correct renderings are accused of
nothing."""

from __future__ import annotations

import random
import re

import openai_harmony as oh
import pytest
from hypothesis import given, settings

from gptoss_ref.chat import Message, o200k_harmony, render_conversation
from gptoss_ref.errors import GptOssError
from gptoss_ref.verify import harmony
from gptoss_ref.verify.rendering import BUGS, rendering_bug
from gptoss_ref.verify.rendering.conversations import check_conversations
from gptoss_ref.verify.rendering.explain import Case, Search, apply
from gptoss_ref.verify.rendering.pieces import from_ids, from_text, text_of
from gptoss_ref.verify.rendering.report import judge
from gptoss_ref.verify.rendering.rules import SPECIFICATION
from tests.support.harmony_oracle import conversations, oracle, to_oracle

DATE = "2026-02-03"
VARIANTS = [(bug, label) for bug in BUGS for label in bug.changes]
RENDERED: dict[bool, dict] = {False: {}, True: {}}


def cases(rules, spelt=False):
    out = []
    for said in check_conversations():
        pieces = rules.render(said.on(DATE))
        observed = from_text(text_of(pieces)) if spelt else pieces
        out.append(Case(said.title, said.on(DATE), observed, spelt))
    return out


def judged(rules, spelt=False):
    observed = cases(rules, spelt)
    return judge(observed, search=Search(observed, made=RENDERED[spelt]))


def test_the_catalogue():
    assert len(BUGS) >= 30
    assert len([bug for bug in BUGS if bug.reports]) >= 30
    assert len({bug.name for bug in BUGS}) == len(BUGS)
    for bug in BUGS:
        assert bug.summary.endswith("."), bug.name
        assert bug.consequence.endswith("."), bug.name
        for report in bug.reports:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", report), report
    with pytest.raises(GptOssError, match="did you mean 'return-in-history'"):
        rendering_bug("return-in-histroy")


@pytest.mark.parametrize(("bug", "label"), VARIANTS, ids=lambda v: getattr(v, "name", v) or "usual")
def test_every_bug_is_named_first(bug, label):
    report = judged(bug.apply(variant=label))
    found = [*report.causes, *report.forms]
    assert [(one.name, one.variant) for one in found] == [(bug.name, label or None)], str(report)
    assert not report.unexplained
    assert found[0].alternatives == ()
    assert report.ok is bug.form


@pytest.mark.parametrize(
    "bug", [bug for bug in BUGS[::4] if not bug.needs_ids], ids=lambda b: b.name
)
def test_a_text_tells_as_much(bug):
    report = judged(bug.apply(), spelt=True)
    assert [one.name for one in (*report.causes, *report.forms)] == [bug.name], str(report)


@pytest.mark.parametrize("seed", range(6))
def test_two_bugs_at_once_are_both_named_or_none_falsely(seed):
    one, two = random.Random(seed).sample(VARIANTS, 2)
    observed = cases(apply((one, two)))
    report = judge(observed, search=Search(observed, made=RENDERED[False]))
    pair = {one[0].name, two[0].name}
    found = [{cause.name, *cause.alternatives} for cause in (*report.causes, *report.forms)]
    assert found, str(report)
    assert all(names & pair for names in found), str(report)
    assert len(found) == 2 or report.unexplained or not_both(one, two), str(report)


def not_both(one, two):
    """Whether one of two bugs makes the other impossible to see."""
    both, alone = cases(apply((one, two))), [cases(apply((bug,))) for bug in (one, two)]
    return any(both == single for single in alone)


def test_our_own_renderings_are_right():
    assert judged(SPECIFICATION).ok
    assert judged(SPECIFICATION, spelt=True).ok


@settings(max_examples=20)
@given(conversations)
def test_openai_harmonys_renderings_are_accused_of_nothing(messages):
    if not messages:
        return
    ids = oracle().render_conversation_for_completion(to_oracle(messages), oh.Role.ASSISTANT)
    report = harmony(messages, ids)
    assert report.causes == (), str(report)
    assert report.unexplained == (), str(report)
    assert {form.name for form in report.forms} <= {"history-of-openai-harmony"}


def test_a_rendering_that_nothing_explains_is_no_accusation():
    said = [Message.user("What is 27 + 58?")]
    for text in ("", "Hello", "<|start|>user<|message|>Something else<|end|><|start|>assistant"):
        report = harmony(said, text)
        assert report.causes == (), str(report)
        assert len(report.unexplained) == 1
        assert not report.ok


def test_a_bug_and_a_difference_that_nothing_explains():
    said = check_conversations()[1]
    text = text_of(rendering_bug("effort-missing").apply().render(said.on(DATE)))
    report = harmony(said, text.replace("Who are you?", "Who art thou?"))
    assert [cause.name for cause in report.causes] == ["effort-missing"]
    assert "Who art thou?" in report.unexplained[0].found


def test_tokens_cut_otherwise_are_noted():
    tokenizer = o200k_harmony()
    said = [Message.user("hello world")]
    ids = render_conversation(said, tokenizer, history="answered")
    assert harmony(said, ids).notes == ()
    text, cut = (
        tokenizer.encode("hello world"),
        [*tokenizer.encode("hel"), *tokenizer.encode("lo world")],
    )
    at = next(n for n in range(len(ids)) if ids[n : n + len(text)] == text)
    report = harmony(said, [*ids[:at], *cut, *ids[at + len(text) :]])
    assert report.ok
    assert "has other tokens" in report.notes[0]
    assert from_ids(ids, tokenizer)[3] == "hello world"
