"""Headers without `<|message|>`: the fields, the text after them, and the reports."""

from __future__ import annotations

import pytest

from gptoss_ref.chat.header import Header
from gptoss_ref.chat.unfinished import parse_unfinished

F = "functions.f"
JSON = "<|constrain|>json"
Reports = list[tuple[str, str, str]]


def read(text: str, role: str | None, cut: bool = False) -> tuple[Header, str, Reports]:
    reports: Reports = []
    sections = text.split("<|channel|>")
    header, rest = parse_unfinished(sections, role, lambda *said: reports.append(said), cut=cut)
    return header, rest, reports


def said(channel: str | None = None, to: str | None = None, kind: str | None = None) -> Header:
    return Header("assistant", None, to, channel, kind)


def several(chosen: str, others: str) -> tuple[str, str, str]:
    action = f"{chosen!r} counts, the last known one"
    return "more than one <|channel|> in a header", action, others


@pytest.mark.parametrize(
    ("text", "header", "rest"),
    [
        ("", said(), ""),
        ("  a b\n", said(), "  a b\n"),
        ("  ", said(), "  "),
        (" <|channel|>final b", said("final"), "b"),
        ("assistant a b", said(), "a b"),
        ("assistant", said(), ""),
        ("assistants a", said(), "assistants a"),
        (f"to={F} a", said(to=F), "a"),
        (f"to={F} to=g a", said(to=F), "to=g a"),
        ("to=a.b-c_d {}", said(to="a.b-c_d"), "{}"),
        (f"to=f {JSON} {{}}", said(to="f", kind=JSON), "{}"),
        (f"to=f{JSON}{{}}", said(to="f", kind=JSON), "{}"),
        ("to=f <|constrain|> code x", said(to="f", kind="<|constrain|>code"), "x"),
        ("to=f <|constrain|> x", said(to="f", kind="<|constrain|>"), "x"),
        ("to=f json {}", said(to="f", kind="json"), "{}"),
        ("to=f json[]", said(to="f", kind="json"), "[]"),
        ("to=f code print", said(to="f", kind="code"), "print"),
        ("to=f json is", said(to="f"), "json is"),
        ("json {}", said(), "json {}"),
        (f"{JSON} {{}}", said(kind=JSON), "{}"),
        (f"{JSON} {JSON}", said(kind=JSON), JSON),
        (f" commentary to={F} {{}}", said("commentary", F), "{}"),
        (f"commentary {F} {{}}", said(), f"commentary {F} {{}}"),
        ("<|channel|>final", said("final"), ""),
        ("<|channel|> final  a", said("final"), "a"),
        ("<|channel|>Final a", said("Final"), "a"),
        ("<|channel|>thought a", said("thought"), "a"),
        ("<|channel|>analysisWe see", said("analysis"), "We see"),
        (f"<|channel|>commentaryto={F} a", said("commentary", F), "a"),
        (f"<|channel|>commentary to={F}<|constrain|>json{{}}", said("commentary", F, JSON), "{}"),
        (f" to={F}<|channel|>commentary json {{}}", said("commentary", F, "json"), "{}"),
        ("a<|channel|>final b", said("final"), "a b"),
        ("<|channel|>final to=f<|channel|>", said("final", "f"), ""),
    ],
)
def test_an_answer(text: str, header: Header, rest: str) -> None:
    found, after, reports = read(text, "assistant")
    assert (found, after) == (header, rest)
    assert [problem for problem, _, _ in reports] == (
        ["more than one <|channel|> in a header"] if text.count("<|channel|>") > 1 else []
    )


@pytest.mark.parametrize(
    ("text", "header", "rest"),
    [
        ("user:bob hi", Header("user", "bob"), "hi"),
        (f"{F} hi", Header("tool", F), "hi"),
        ("get to=assistant hi", Header("tool", "get", "assistant"), "hi"),
        ("get\n to=assistant hi", Header("tool", "get", "assistant"), "hi"),
        ("I go on", said(), "I go on"),
        ("user", Header("user"), ""),
        ("user<|channel|>final hi", Header("user", channel="final"), "hi"),
        ("", said(), ""),
    ],
)
def test_a_role(text: str, header: Header, rest: str) -> None:
    assert read(text, None) == (header, rest, [])


def test_reports() -> None:
    glued = ("unknown role 'assistantfinal'", "taken as assistant and final", "")
    assert read("assistantfinal a", None) == (said("final"), "a", [glued])
    assert read("assistantfinal a<|channel|>analysis b", None) == (
        said("analysis"), "a b", [glued, several("analysis", "final")]
    )  # fmt: skip
    assert read(f"commentary to={F}<|channel|>final b", "assistant") == (
        said("final", F), "b", [several("final", "commentary")]
    )  # fmt: skip
    left_out = ("'?' before to=", "left out", "?")
    assert read(f"<|channel|>commentary? to={F} a", "assistant") == (
        said("commentary", F), "a", [left_out]
    )  # fmt: skip
    text = ("<|channel|> before 'Okay let me think ab'", "the rest is text", "")
    assert read("<|channel|>Okay let me think about it", "assistant") == (
        said(), "Okay let me think about it", [text]
    )  # fmt: skip
    assert read("<|channel|>finally<|channel|>final b", "assistant") == (
        said("final"), "finally b",
        [("<|channel|> before 'finally'", "the rest is text", ""), several("final", "")],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "role", "header", "rest", "left_out"),
    [
        ("assis", None, said(), "", None),
        ("I go", None, said(), "I go", None),
        ("assistant", "assistant", said(), "", None),
        (" t", "assistant", said(), "", None),
        ("to=", "assistant", said(), "", None),
        ("tomorrow", "assistant", said(), "tomorrow", None),
        ("to=f t", "assistant", said(to="f"), "", None),
        ("<|channel|>comm", "assistant", said(), "", "comm"),
        ("<|channel|>", "assistant", said(), "", None),
        ("<|channel|>final<|channel|>an", "assistant", said("final"), "", "an"),
        ("user<|channel|>fin", None, Header("user"), "", "fin"),
    ],
)
def test_cut_short(
    text: str, role: str | None, header: Header, rest: str, left_out: str | None
) -> None:
    found, after, reports = read(text, role, cut=True)
    assert (found, after) == (header, rest)
    said = (f"{left_out!r}, the beginning of a channel", "left out", left_out)
    assert [report for report in reports if "more than one" not in report[0]] == (
        [said] if left_out else []
    )


def test_the_beginning_of_a_channel_is_text_if_more_came() -> None:
    """Only the last section can be cut."""
    assert read("<|channel|>fin<|channel|>final a", "assistant", cut=True)[1] == "fin a"
    assert read("<|channel|>fin", "assistant")[1] == "fin"
