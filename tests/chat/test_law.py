"""Nothing that a model writes is lost, and its answer holds no other text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from gptoss_ref.chat import HarmonyParser, Message, MessageEnd, MessageStart, TextDelta, parse
from gptoss_ref.chat.reply import Collector
from tests.support.harmony_law import TOKENIZER, TRUE, check, sequences, spelt


@given(sequences)
@settings(max_examples=500)
def test_any_tokens(tokens: list[int]) -> None:
    """`python -m tests.support.harmony_law` tries 100,000."""
    check(tokens)


@pytest.mark.parametrize("tokens", TRUE)
def test_cut_anywhere(tokens: list[int]) -> None:
    for length in range(len(tokens) + 1):
        check(tokens[:length])


def collect(text: str, *, stop_at_other_roles: bool = True) -> dict[str, Any]:
    """The places of a Reply; the tokens end with the text."""
    tokens = spelt(text)
    check(tokens)
    collector = Collector(TOKENIZER, stop_at_other_roles=stop_at_other_roles)
    for token in tokens:
        collector.feed(token)
        if collector.stopped:
            break
    collector.finish()
    return collector.fields()


# --- where the text begins, without <|message|> ---------------------------------------------------

F = "functions.f"
ARGUMENTS = '{"a":1}'


@pytest.mark.parametrize(
    ("text", "recipient", "channel", "content_type", "arguments"),
    [
        ("<|channel|>commentary to=functions.f{}<|call|>", F, "commentary", None, "{}"),
        ("<|channel|>commentary to=functions.f()<|call|>", F, "commentary", None, "()"),
        ("<|channel|>commentary to= functions.f {}<|call|>", F, "commentary", None, "{}"),
        ("<|channel|>commentary\nto=functions.f\n\n{}\n<|call|>", F, "commentary", None, "{}\n"),
        ("<|channel|>commentary to=functions.f<|call|>", F, "commentary", None, ""),
        ("<|channel|>commentary to=functions.f.<|call|>", F, "commentary", None, "."),
        ("<|channel|>commentary to=f[1]<|call|>", "f", "commentary", None, "[1]"),
        ("<|channel|>commentary to=get-it{}<|call|>", "get-it", "commentary", None, "{}"),
        ("<|channel|>commentaryto=functions.f{}<|call|>", F, "commentary", None, "{}"),
        ("<|channel|>Commentary to=functions.f{}<|call|>", F, "Commentary", None, "{}"),
        ("<|channel|>commentary? to=functions.f{}<|call|>", F, "commentary", None, "{}"),
        ("<|channel|>commentary to=functions.f json{}<|call|>", F, "commentary", "json", "{}"),
        ("<|channel|>commentary to=functions.f json {}<|call|>", F, "commentary", "json", "{}"),
        ("<|channel|>analysis to=python code print(1)<|call|>", "python", "analysis", "code", None),
        ("<|channel|>analysis to=python code = 5<|call|>", "python", "analysis", None, "code = 5"),
        ("<|channel|>analysis to=python print(1)<|call|>", "python", "analysis", None, "print(1)"),
        (" to=functions.f<|channel|>commentary{}<|call|>", F, "commentary", None, "{}"),
        ("assistant to=functions.f<|channel|>commentary{}<|call|>", F, "commentary", None, "{}"),
        (" to=functions.f{}<|call|>", F, None, None, "{}"),
        ("to=functions.f to=functions.g{}<|call|>", F, None, None, "to=functions.g{}"),
        ("<|channel|>analysis<|channel|>commentary to=g{}<|call|>", "g", "commentary", None, "{}"),
        ("<|channel|>commentary to=g<|channel|>commentary{}<|end|>", "g", "commentary", None, "{}"),
        ("<|channel|>commentary to=functions.f<|channel|>{}<|end|>", F, "commentary", None, "{}"),
        ("commentary to=functions.f{}<|call|>", F, "commentary", None, "{}"),
        ("<|channel|>commentary to=functions.f{}<|endoftext|>", F, "commentary", None, "{}"),
        ("<|channel|>commentary to=functions.f{}<|start|>assistant", F, "commentary", None, "{}"),
    ],
)  # fmt: skip
def test_calls(
    text: str, recipient: str, channel: str, content_type: str | None, arguments: str | None
) -> None:
    (message,) = parse(spelt(text), TOKENIZER)
    assert (message.recipient, message.channel) == (recipient, channel)
    assert message.content_type == content_type
    if arguments is not None:
        assert message.text == arguments
        (call,) = collect(text)["tool_calls"]
        assert (call.recipient, call.text) == (recipient, arguments)


@pytest.mark.parametrize("gap", ["", " ", "  ", "\n"])
@pytest.mark.parametrize("form", ["<|constrain|>json", "<|constrain|>", "<|constrain|> json"])
def test_constrain_runs_into_the_arguments(gap: str, form: str) -> None:
    text = f"<|channel|>commentary to=functions.f{gap}{form}{gap}{ARGUMENTS}<|call|>"
    (message,) = parse(spelt(text), TOKENIZER)
    assert message == Message.call(F, ARGUMENTS, form.replace(" ", ""))


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("<|channel|>final{}<|return|>", "final", "{}"),
        ("<|channel|>final\n\nHi  there\n<|return|>", "final", "Hi  there\n"),
        ("<|channel|>finalThe end<|return|>", "final", "The end"),
        ("<|channel|>Final The end<|return|>", "final", "The end"),
        ("<|channel|>final<|channel|>final The end<|return|>", "final", "The end"),
        ("<|channel|>analysis<|channel|>final<|message|>A<|return|>", "final", "A"),
        ("<|channel|>analysis<|channel|>Final<|message|>A<|return|>", "final", "A"),
        ("<|channel|>final<|channel|>odd<|message|>A<|return|>", "final", "A"),
        ("<|channel|>analysis<|message|>A<|channel|>final B<|return|>", "final", "B"),
        ("<|channel|>analysisWe see<|end|>", "analysis", "We see"),
        ("<|channel|>commentary to=assistant<|channel|>commentary?hm<|end|>", "commentary", "?hm"),
        ("<|channel|>Okay let me think<|end|>", "final", "Okay let me think"),
        ("<|channel|>finally, I see<|end|>", "final", "finally, I see"),
        ("<|channel|>thought I see<|end|>", "analysis", "I see"),
        ("  code\n<|return|>", "final", "  code\n"),
        ("Hi<|endoftext|>", "final", "Hi"),
        ("<|message|>A<|end|><|start|>assistant<|channel|>final<|message|>", "final", "A"),
        ("Hi", "final", "Hi"),
        ("<|channel|>final Hi", "final", "Hi"),
        ("<|channel|>analysis<|message|>A<|end|>Hi there<|return|>", "final", "Hi there"),
        ("<|channel|>analysis<|message|>A<|end|>Hi there<|endoftext|>", "final", "Hi there"),
        ("<|channel|>analysis<|message|>A<|end|>Hi there", "final", "Hi there"),
        (
            "<|channel|>analysis<|message|>A<|end|>We go on<|channel|>final<|message|>B",
            "final",
            "B",
        ),
        *(
            (f"<|channel|>analysis<|message|>A<|end|>{start}{words}<|return|>", "final", words)
            for start in ("", "<|start|>")
            for words in (
                "Done. It is 4",
                "3.5 it is",
                "System calls fail",
                "well-known facts",
                "e.g. this",
                "python is a language",
                "a.b is c",
                "tool use",
            )
        ),
        ("<|channel|>analysis<|message|>A<|end|>Done.<|channel|>final<|message|>B", "final", "B"),
        ("<|channel|>analysis A<|start|>assistant<|channel|>final B<|return|>", "final", "B"),
        ("<|channel|>analysis A<|start|>assistant<|channel|>final B<|return|>", "analysis", "A"),
    ],
)
def test_talk(text: str, place: str, expected: str) -> None:
    assert collect(text)[place] == expected


@pytest.mark.parametrize(
    ("channel", "place"),
    [
        *(("Final", "final"), ("FINAL", "final"), ("finals", "final"), ("**final**", "final")),
        *(("Analysis", "analysis"), ("analyses", "analysis"), ("thought", "analysis")),
        *(("reasoning", "analysis"), ("comentary", "commentary"), ("Commentary:", "commentary")),
        *(
            ("ﬁnal", "final"),
            ("??", "commentary"),
            ("odd", "commentary"),
            ("漢字", "commentary"),
            ("answer", "final"),
            ("final_answer", "final"),
            ("commentaryjson", "commentary"),
            ("analysisfinal", "analysis"),
        ),
    ],
)
def test_channels_of_other_names(channel: str, place: str) -> None:
    found = collect(f"<|channel|>{channel}<|message|>hello<|return|>")
    assert {p: found[p] for p in ("analysis", "commentary", "final") if found[p]} == {
        place: "hello"
    }
    (repair,) = found["repairs"]
    assert repair.problem == f"a message in the channel {channel!r}"
    assert repair.action == f"read as {place}"
    assert found["messages"][0].channel == channel  # as the model wrote it


def test_events_of_a_collector_are_the_parsers() -> None:
    """Apart from the stop of a message that ends where the next one begins."""
    half = TOKENIZER.encode("\N{ROCKET}")[0]
    end = TOKENIZER.special_id("end")
    tokens = [
        *spelt("<|message|>a<|start|>assistant<|message|>"),
        half,
        end,
        *spelt("<|start|>assistant<|message|>b<|return|>"),
    ]
    collector, parser = Collector(TOKENIZER), HarmonyParser(TOKENIZER)
    ours = [event for token in tokens for event in collector.feed(token)] + collector.finish()
    theirs = [event for token in tokens for event in parser.feed(token)] + parser.finish()
    stops = [event.stop for event in ours if isinstance(event, MessageEnd)]
    assert stops == ["end", "end", "return"]
    changed = [replace(e, stop=e.stop or "end") if isinstance(e, MessageEnd) else e for e in theirs]
    assert ours == changed


def test_a_channel_without_its_token() -> None:
    found = collect("analysis<|message|>hm<|end|><|start|>assistant final<|message|>A<|return|>")
    assert (found["analysis"], found["final"]) == ("hm", "A")
    assert [r.problem for r in found["repairs"]] == [
        "no <|channel|> before 'analysis'",
        "no <|channel|> before 'final'",
    ]
    assert {r.action for r in found["repairs"]} == {"read as the channel"}


def test_a_call_in_an_odd_channel_is_a_call() -> None:
    found = collect("<|channel|>tools to=functions.f<|message|>{}<|call|>")
    assert [call.recipient for call in found["tool_calls"]] == [F]
    assert found["repairs"] == ()
    assert found["tool_calls"][0].answer("1").channel == "tools"


@pytest.mark.parametrize(
    ("written", "left_out"),
    [
        ("to = functions.f", "to="),
        ("to= functions.f", ""),
        ("TO=functions.f", "TO="),
        ("To: functions.f", "To:"),
        ("to:functions.f", "to:"),
        ('to="functions.f"', '""'),
        ("to=`functions.f`", "``"),
    ],
)
@pytest.mark.parametrize("text", ["<|channel|>commentary {}", " {}<|channel|>commentary"])
def test_recipients_written_otherwise(text: str, written: str, left_out: str) -> None:
    found = collect(f"{text.format(written)}<|message|>{ARGUMENTS}<|call|>")
    assert [(c.recipient, c.text) for c in found["tool_calls"]] == [(F, ARGUMENTS)]
    (repair,) = found["repairs"]
    assert repair.text == left_out


def test_prose_in_a_header_calls_nobody() -> None:
    found = collect("<|channel|>analysis We want to: see<|message|>a<|end|>")
    assert (found["analysis"], found["tool_calls"]) == ("a", ())


@pytest.mark.parametrize(
    ("text", "left_out"),
    [
        (
            "<|message|>a<|end|> We need more<|start|>assistant<|message|>b<|end|>",
            [" We need more"],
        ),
        ("<|channel|>commentary?x to=f<|message|>{}<|call|>", ["?x"]),
        (" to=f to=g<|message|>{}<|call|>", ["to=g"]),
        ("<|channel|>final this is odd<|message|>a<|end|>", ["this is odd"]),
        ("<|channel|>commentary to=f <|constrain|>json so<|message|>{}<|call|>", ["so"]),
        ("<|start|>robot<|message|>a<|end|>", ["robot"]),
        ("<|start|>I think so<|channel|>final<|message|>a<|end|>", ["I think so"]),
        ("<|channel|>analysis<|end|>", ["analysis"]),
        ("<|channel|>anal", ["anal"]),
        ("<|channel|>final<|message|>a<|end|><|start|>assis", ["assis"]),
        (" to", [" to"]),
        ("<|channel|>commentary to=functions.f", ["commentary to=functions.f"]),
        ('<|channel|>commentary to=functions.f<|message|>{"a":', ['{"a":']),
        ('<|channel|>commentary to=functions.f {"a":', ['{"a":']),
        ("<|reserved_200013|><|message|>a<|end|>", ["<|reserved_200013|>"]),
    ],
)
def test_what_is_left_out_is_in_a_repair(text: str, left_out: list[str]) -> None:
    found = collect(text)
    assert [repair.text for repair in found["repairs"] if repair.text] == left_out
    assert all(repr(text) in str(r) for r in found["repairs"] for text in left_out if r.text)
    assert found["tool_calls"] == () or found["tool_calls"][0].text == "{}"


# --- other roles ----------------------------------------------------------------------------------

A = "<|channel|>final<|message|>A<|end|>"
C = "<|start|>assistant<|channel|>final<|message|>C<|return|>"


@pytest.mark.parametrize(
    ("header", "role"),
    [
        *(("user", "user"), ("user:bob", "user bob"), ("User", "user"), ("human", "user")),
        *(("system", "system"), ("developer", "developer"), ("assistantuser", "user")),
        *(("functions.f to=assistant<|channel|>commentary", "tool functions.f"),),
        *(("python", "tool python"), ("tool", "tool tool"), ("user<|channel|>final", "user")),
        *(("f to=assistant", "tool f"), ("user to=assistant", "user"), ("SYSTEM", "system")),
        *(("get_weather", "tool get_weather"), ("functions", "tool functions")),
    ],
)
@pytest.mark.parametrize("message", ["<|message|>", " "])
def test_other_roles(header: str, role: str, message: str) -> None:
    plain = header.startswith(("user", "system", "developer", "assistantuser", "functions."))
    if message == " " and not plain and " to=" not in header:
        return  # may be the first word of a sentence
    text = f"{A}<|start|>{header}{message}B words<|end|>{C}"
    cut = collect(text)
    assert (cut["final"], cut["analysis"], cut["commentary"]) == ("A", "", "")
    assert [m.role for m in cut["messages"]] == ["assistant"]
    last = [r for r in cut["repairs"] if r.action == "the answer ends before it"]
    assert [r.problem for r in last] == [f"a message of the role {role}"]
    whole = collect(text, stop_at_other_roles=False)
    assert (whole["final"], whole["analysis"], whole["commentary"]) == ("A\n\nC", "", "")
    assert [m.text for m in whole["messages"]] == ["A", "B words", "C"]
    (repair,) = [r for r in whole["repairs"] if r.action == "no part of the answer"]
    assert repair.text == "B words"


def test_no_event_speaks_for_another_role() -> None:
    for message in ("<|message|>", " "):
        collector = Collector(TOKENIZER)
        events = []
        for token in spelt(f"{A}<|start|>user{message}B words<|end|>"):
            events += collector.feed(token)
            if collector.stopped:
                break
        events += collector.finish()
        starts = [e.header.role for e in events if isinstance(e, MessageStart)]
        assert starts == ["assistant"]
        assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "A"


def test_a_call_the_model_answers_itself_waits_for_its_result() -> None:
    call = "<|channel|>commentary to=functions.f json<|message|>{}<|end|>"
    found = collect(f"{call}<|start|>functions.f to=assistant<|channel|>commentary<|message|>1{C}")
    assert [call.recipient for call in found["tool_calls"]] == [F]
    assert (found["commentary"], found["final"]) == ("", "")


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
def test_output_that_names_its_own_role(role: str) -> None:
    parser = HarmonyParser(TOKENIZER)
    for token in spelt(f"<|start|>{role}<|message|>Hi<|end|><|start|>assistant<|message|>Yes"):
        parser.feed(token)
    parser.finish()
    assert parser.messages == [Message(role, "Hi"), Message("assistant", "Yes")]
