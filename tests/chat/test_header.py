"""Headers field by field, and each report with its problem, action and text."""

from __future__ import annotations

import pytest

from gptoss_ref.chat.header import Header, names_a_role, one_channel, parse_header, read_role

F = "functions.f"
JSON = "<|constrain|>json"
NO_ROLE = ("a header without a role", "taken as the assistant's", "")
NO_CHANNEL = ("<|channel|> without a name right after it", "the next word counts, if any", "")
NO_NAME = ("to= without a name right after it", "the next word counts, if any", "")
NO_FORMAT = ("<|constrain|> without a format right after it", "the next word counts", "")
Reports = list[tuple[str, str, str]]


def unknown(role: str, taken: str, text: str) -> tuple[str, str, str]:
    return f"unknown role {role!r}", f"taken as {taken}", text


def channels(action: str, text: str) -> tuple[str, str, str]:
    return "more than one <|channel|> in a header", action, text


def second(recipient: str, text: str) -> tuple[str, str, str]:
    problem = f"to={recipient} after another recipient or type"
    return problem, "the first of each kind counts", text


def unexpected(text: str) -> tuple[str, str, str]:
    return f"unexpected {text!r} in a header", "left out", text


@pytest.mark.parametrize(
    ("text", "header", "reports"),
    [
        ("user", Header("user"), []),
        ("user:bob", Header("user", "bob"), []),
        ("tool:x", Header("tool", "tool:x"), []),
        ("User:bob", Header("user", "bob"), [unknown("User", "user", "User")]),
        ("human", Header("user"), [unknown("human", "user", "human")]),
        ("SYSTEM", Header("system"), [unknown("SYSTEM", "system", "SYSTEM")]),
        ("Assistant", Header("assistant"), [unknown("Assistant", "assistant", "Assistant")]),
        ("Tool", Header("assistant"), [unknown("Tool", "the assistant's", "Tool")]),
        (f"Human to={F}", Header("tool", "Human", F), []),
        (f"get to={F}", Header("tool", "get", F), []),
        (f"f<|channel|>analysis to={F}", Header("tool", "f", F, "analysis"), []),
        ("assistantuser", Header("user"), [unknown("assistantuser", "user", "assistant")]),
        (
            "assistanttool",
            Header("tool", "assistanttool"),
            [unknown("assistanttool", "the name of a tool", "")],
        ),
        (
            "assistantfinal",
            Header("assistant", channel="final"),
            [unknown("assistantfinal", "assistant and final", "")],
        ),
        (
            "assistantcommentary<|channel|>final",
            Header("assistant", channel="final"),
            [
                unknown("assistantcommentary", "assistant and commentary", ""),
                ("'commentary' after the role, and a channel", "'final' counts", "commentary"),
            ],
        ),
        (F, Header("tool", F), []),
        ("python", Header("tool", "python"), []),
        ("browser", Header("tool", "browser"), []),
        (
            "functions",
            Header("tool", "functions"),
            [unknown("functions", "the name of a tool", "")],
        ),
        ("get_it", Header("tool", "get_it"), [unknown("get_it", "the name of a tool", "")]),
        (
            "I think so",
            Header("assistant"),
            [unknown("I think so", "the assistant's", "I think so")],
        ),
        (
            f"I think {JSON}",
            Header("assistant", content_type=JSON),
            [unknown("I think", "the assistant's", "I think")],
        ),
        ("", Header("assistant"), [NO_ROLE]),
        (f" to={F}", Header("assistant", recipient=F), [NO_ROLE]),
    ],
)
def test_roles(text: str, header: Header, reports: Reports) -> None:
    assert read(text, None) == (header, reports)


def read(text: str, role: str | None) -> tuple[Header, Reports]:
    reports: Reports = []
    header = parse_header(text.split("<|channel|>"), role, lambda *said: reports.append(said))
    return header, reports


@pytest.mark.parametrize(
    ("text", "channel", "reports"),
    [
        ("final", "final", []),
        ("", None, [NO_CHANNEL]),
        (" final", "final", [NO_CHANNEL]),
        ("Final", "Final", []),
        ("odd", "odd", []),
        ("commentary?", "commentary", [("channel 'commentary?'", "taken as commentary", "?")]),
        ("finals", "finals", []),
        (
            "analysis<|channel|>final",
            "final",
            [channels("'final' counts, the last known one", "analysis")],
        ),
        ("Final<|channel|>odd", "Final", [channels("'Final' counts, the last known one", "odd")]),
        ("odd<|channel|>b", "odd", [channels("'odd' counts, the last known one", "b")]),
        (
            "odd<|channel|>final<|channel|>b<|channel|>c",
            "final",
            [channels("'final' counts, the last known one", "odd b c")],
        ),
        (
            "final<|channel|>",
            "final",
            [NO_CHANNEL, channels("'final' counts, the last known one", "")],
        ),
        ("<|channel|>", None, [NO_CHANNEL, NO_CHANNEL, channels("there is none", "")]),
    ],
)
def test_channels(text: str, channel: str | None, reports: Reports) -> None:
    assert read(f"<|channel|>{text}", "assistant") == (
        Header("assistant", channel=channel),
        reports,
    )


def test_a_channel_that_is_part_of_the_role() -> None:
    reports: Reports = []
    assert one_channel(["final", "odd"], 1, lambda *said: reports.append(said)) == "final"
    assert reports == [channels("'final' counts, the last known one", "odd")]
    assert one_channel(["odd"], 1, lambda *said: reports.append(said)) == "odd"
    assert len(reports) == 1


@pytest.mark.parametrize(
    ("text", "recipient", "content_type", "reports"),
    [
        ("", None, None, []),
        ("assistant", None, None, []),
        (f"assistant to={F}", F, None, []),
        ("user", None, "user", []),  # the role is known
        (F, F, None, []),
        ("python", "python", None, []),
        ("json", None, "json", []),
        ("code", None, "code", []),
        (f"{F} x", F, "x", []),
        ("f\tjson", "f", "json", []),
        ("f\u00a0g json", "f\u00a0g", "json", []),
        (f"f {JSON}", "f", JSON, []),
        (f"f{JSON}", "f", JSON, []),
        (f"to=f{JSON}", "f", JSON, []),
        ("a b c", None, None, [unexpected("a b c")]),
        ("a b json", None, "json", [unexpected("a b")]),
        ("a b code", None, "code", [unexpected("a b")]),
        (f"a b {JSON}", None, JSON, [unexpected("a b")]),
        (f"{F} a json", F, "json", [unexpected("a")]),
        ("to=f x", "f", "x", []),
        ("to=f x y", "f", None, [unexpected("x y")]),
        (f"TO = {F}", F, None, [("'TO =' for 'to='", "taken as 'to='", "TO=")]),
        (f"a to: {F}", F, "a", [("'to:' for 'to='", "taken as 'to='", "to:"), second(F, "")]),
        ("to=", None, None, [NO_NAME]),
        ("to= f", "f", None, [NO_NAME]),
        ("to= to=f", "f", None, [NO_NAME]),
        (f"to= {JSON}", None, JSON, [NO_NAME]),
        ("to='f'", "f", None, [("to='f'", "the name counts without its quotes", "''")]),
        ("to='X'", "X", None, [("to='X'", "the name counts without its quotes", "''")]),
        ("to=''", "''", None, []),
        ("to=f to=g", "f", None, [second("g", "to=g")]),
        ("to=f to=", "f", None, [NO_NAME, second("", "to=")]),
        ("json to=f", "f", "json", [second("f", "")]),
        (f"{JSON} to=f", "f", JSON, [second("f", "")]),
        (f"to=f {JSON} so", "f", JSON, [("'so' after the content type", "left out", "so")]),
        ("<|constrain|>", None, "<|constrain|>", [NO_FORMAT]),
        ("<|constrain|> json", None, JSON, [NO_FORMAT]),
        ("<|constrain|> to=f", "f", "<|constrain|>", [NO_FORMAT, second("f", "")]),
    ],
)
def test_recipients_and_types(
    text: str, recipient: str | None, content_type: str | None, reports: Reports
) -> None:
    header = Header("assistant", recipient=recipient, content_type=content_type)
    assert read(text, "assistant") == (header, reports)


@pytest.mark.parametrize(
    ("section", "recipient", "content_type", "reports"),
    [
        (f"final{JSON}", None, JSON, []),
        ("final a\nb", "a", "b", []),
        (
            "final<x",
            None,
            "<x",
            [("'<x' right after the channel 'final'", "read as a separate word", "")],
        ),
        (" to=f", "f", None, [NO_CHANNEL]),
        (f" {JSON}", None, JSON, [NO_CHANNEL]),
    ],
)
def test_words_after_the_channel(
    section: str, recipient: str | None, content_type: str | None, reports: Reports
) -> None:
    channel = "final" if section.startswith("final") else None
    expected = Header("assistant", None, recipient, channel, content_type)
    assert read(f"<|channel|>{section}", "assistant") == (expected, reports)


def test_words_after_an_earlier_channel_count() -> None:
    expected = Header("assistant", None, "f", "final", JSON)
    reports = [channels("'final' counts, the last known one", "analysis")]
    for text in (f"analysis to=f<|channel|>final {JSON}", f"analysis to=f {JSON}<|channel|>final"):
        assert read(f"<|channel|>{text}", "assistant") == (expected, reports)


def test_a_message_has_the_fields_of_its_header() -> None:
    message = Header("tool", "f", "assistant", "commentary", "json").message("text")
    assert (message.role, message.name, message.recipient) == ("tool", "f", "assistant")
    assert (message.channel, message.content_type, message.text) == ("commentary", "json", "text")


def test_what_may_begin_a_sentence_names_no_role() -> None:
    for text in (
        "user x",
        "user:bob",
        "user:a:b",
        " system",
        "assistantfinal",
        "toolassistant",
        F,
        "browser.x",
    ):
        assert names_a_role(text), text
    for text in ("", "tool use", "User", "python", "a.b", f"a {F}", "finaluser", "browser"):
        assert not names_a_role(text), text
    nobody = (None, None, None)
    assert read_role("well", False, lambda *_: None) == nobody
