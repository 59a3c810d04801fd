"""The streaming parser against openai-harmony, against the renderer, and on malformed streams."""

from __future__ import annotations

from dataclasses import replace

import openai_harmony as oh
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gptoss_ref.chat import (
    HarmonyParser,
    Message,
    MessageEnd,
    MessageStart,
    Repair,
    TextDelta,
    o200k_harmony,
    parse,
    render_conversation,
    render_message,
)
from gptoss_ref.errors import HarmonyError, TokenError
from tests.support.harmony_oracle import assistants, conversations, from_oracle, oracle, texts


def spelt(text: str) -> list[int]:
    """Tokens of a text in which special tokens are spelt; the oracle's encoder makes them."""
    return oracle().encode(text, allowed_special="all")


def theirs(tokens: list[int], role: str | None, strict: bool = True) -> list[Message] | None:
    """What the oracle parses; None where it refuses."""
    try:
        return from_oracle(
            oracle().parse_messages_from_completion_tokens(
                tokens, None if role is None else oh.Role(role), strict=strict
            )
        )
    except oh.HarmonyError:
        return None


def as_text(message: Message) -> Message:
    """The message as it can come back: content as text, and no recipient for `all`."""
    tokens = render_message(message, o200k_harmony())
    body = tokens[tokens.index(o200k_harmony().special_id("message")) + 1 : -1]
    recipient = None if message.recipient == "all" else message.recipient
    return replace(message, content=o200k_harmony().decode(body), recipient=recipient)


def by_oracle(message: Message) -> Message:
    """A message of ours as the oracle reads it: its lone content type is a recipient there."""
    if message.recipient is None and message.content_type is not None:
        return replace(message, recipient=message.content_type, content_type=None)
    return message


# --- whole conversations --------------------------------------------------------------------------


@given(conversations)
@settings(max_examples=100)
def test_parsing_undoes_rendering(messages: list[Message]) -> None:
    kept = [m for m in messages if m.role != "tool" or "." in m.name or m.recipient == "assistant"]
    assume(kept)
    tokens = [token for m in kept for token in render_message(m, o200k_harmony())]
    found = parse(tokens, o200k_harmony(), role=None, strict=True)
    assert found == [as_text(message) for message in kept]


@given(conversations)
@settings(max_examples=100)
def test_conversations_as_the_oracle_parses_them(messages: list[Message]) -> None:
    """Message by message: the oracle cannot read names of users, or tools without a recipient."""
    for message in messages:
        tokens = render_message(message, o200k_harmony())
        expected = theirs(tokens, None)
        if expected is not None:
            found = parse(tokens, o200k_harmony(), role=None, strict=True)
            assert [by_oracle(message) for message in found] == expected


@given(st.lists(assistants, min_size=1, max_size=3), st.data())
@settings(max_examples=100)
def test_completions_as_the_oracle_parses_them(
    messages: list[Message], data: st.DataObject
) -> None:
    """A completion that goes on from `<|start|>assistant`, cut anywhere."""
    everything = render_conversation(messages, o200k_harmony(), None, history="keep")
    tokens = everything[2 : data.draw(st.integers(3, len(everything)))]
    expected = theirs(tokens, "assistant")
    if expected is not None:
        found = parse(tokens, o200k_harmony(), strict=True)
        assert [by_oracle(message) for message in found] == expected
        assert parse(tokens, o200k_harmony()) == found
    # cut inside a header, the tolerant parser has at least the messages before it
    ends = [o200k_harmony().special_id(name) for name in ("end", "call")]
    complete = sum(token in ends for token in tokens)
    whole = parse(tokens, o200k_harmony())
    assert whole[:complete] == [as_text(message) for message in messages][:complete]


HEADERS = [
    "<|channel|>analysis<|message|>",
    "<|channel|>commentary to=functions.f<|message|>",
    "<|channel|>commentary to=functions.f json<|message|>",
    "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
    "<|channel|>commentary to=functions.f<|constrain|>json<|message|>",
    "<|channel|>analysis to=python code<|message|>",
    " to=functions.f<|channel|>commentary<|message|>",
    " to=functions.f<|channel|>commentary json<|message|>",
    " to=functions.f<|channel|>commentary <|constrain|>json<|message|>",
    " to=functions.f <|channel|>commentary\n<|constrain|>json <|message|>",
    "<|channel|>commentary functions.f<|message|>",
    "<|channel|>commentary functions.f <|constrain|>json<|message|>",
    "<|channel|>odd<|message|>",
    "<|message|>",
]


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("role", ["assistant", None])
def test_headers(header: str, role: str | None) -> None:
    begin = "<|start|>assistant" if role is None else ""
    tokens = spelt(f"{begin}{header}text<|end|><|start|>assistant{header}more<|return|>")
    expected = theirs(tokens, role)
    assert expected is not None
    assert parse(tokens, o200k_harmony(), role=role, strict=True) == expected
    assert parse(tokens, o200k_harmony(), role=role) == expected


@pytest.mark.parametrize(
    ("header", "channel", "content_type"),
    [
        ("<|channel|>final json<|message|>", "final", "json"),  # openai/harmony issue 56
        ("<|channel|>final <|constrain|>json<|message|>", "final", "<|constrain|>json"),  # pull 144
        ("<|channel|>analysis code<|message|>", "analysis", "code"),
    ],
)
def test_a_lone_content_type_is_no_recipient(header: str, channel: str, content_type: str) -> None:
    tokens = spelt(f"{header}{{}}<|return|>")
    (found,) = parse(tokens, o200k_harmony(), strict=True)
    assert found == Message(
        "assistant", "{}", channel=channel, content_type=content_type, recipient=None
    )
    assert theirs(tokens, "assistant") == [by_oracle(found)]


# --- streaming ------------------------------------------------------------------------------------


@given(conversations)
@settings(max_examples=50)
def test_events_tell_the_messages(messages: list[Message]) -> None:
    tokens = render_conversation(messages, o200k_harmony(), None)
    parser = HarmonyParser(o200k_harmony(), role=None)
    open_header, text, ended = None, "", []
    for position, token in enumerate(tokens):
        assert parser.position == position
        for event in parser.feed(token):
            match event:
                case MessageStart(header):
                    assert open_header is None
                    open_header, text = header, ""
                case TextDelta(header, piece):
                    assert piece
                    assert header == open_header
                    text += piece
                case MessageEnd(message, stop):
                    assert message.text == text
                    assert stop in ("end", "call")
                    ended.append(message)
                    open_header = None
                case Repair():
                    pass
        assert parser.header == open_header
        assert parser.text == (text if open_header else "")
    assert parser.finish() == []
    assert ended == parser.messages == parse(tokens, o200k_harmony(), role=None)


ordinary = st.integers(0, 199_997)
# 9552 is b" \xf0\x9f": the first half of most emoji, and a common way to invalid UTF-8
halves = st.sampled_from([9552, 132990, *range(188, 256), *range(94, 188)])


@given(st.lists(st.one_of(ordinary, halves), max_size=12), st.booleans())
@settings(max_examples=200)
def test_any_bytes_in_a_text(body: list[int], ended: bool) -> None:
    """Invalid bytes become U+FFFD as bytes.decode does it, and as the oracle does."""
    tokens = spelt("<|channel|>final<|message|>") + body + ([200007] if ended else [])
    (found,) = parse(tokens, o200k_harmony(), strict=True)
    assert found.text == o200k_harmony().decode(body)
    assert [found] == theirs(tokens, "assistant")


def test_a_character_waits_for_its_last_byte() -> None:
    parser = HarmonyParser(o200k_harmony())
    for token in spelt("<|channel|>final<|message|>"):
        parser.feed(token)
    body = o200k_harmony().encode("👩‍🚀!")
    assert len(body) > 3
    pieces = [
        "".join(event.text for event in parser.feed(token) if isinstance(event, TextDelta))
        for token in body
    ]
    assert "".join(pieces) == "👩‍🚀!"
    assert "" in pieces
    assert not any("�" in piece for piece in pieces)
    # a half that a text begins again after is U+FFFD at once, and leaks into no other message
    half = o200k_harmony().encode("🚀")[0]
    assert parser.feed(half)[0:] in ([], [TextDelta(parser.header, " ")])
    (delta,) = parser.feed(o200k_harmony().encode("x")[0])
    assert delta == TextDelta(parser.header, "�x")
    parser.feed(half)
    delta, end = parser.feed(o200k_harmony().special_id("end"))
    assert isinstance(end, MessageEnd)
    assert delta == TextDelta(delta.header, "�")
    for token in spelt("<|start|>assistant<|channel|>final<|message|>"):
        parser.feed(token)
    assert parser.text == ""


# --- what does not follow the format --------------------------------------------------------------


def said(text: str, channel: str | None = None, recipient: str | None = None) -> Message:
    return Message("assistant", text, channel=channel, recipient=recipient)


FINAL = "<|start|>assistant<|channel|>final<|message|>ok<|return|>"
OK = said("ok", "final")

MALFORMED = [
    # openai/harmony pull 82: no <|message|>
    ("I must refuse<|end|>" + FINAL, [said("I must refuse"), OK], "<|end|> in a header"),
    (
        "<|channel|>analysis I must refuse<|end|>" + FINAL,
        [said("I must refuse", "analysis"), OK],
        "<|end|> in a header",
    ),
    (
        "<|channel|>final<|message|>a<|end|><|start|>assistant I go on<|end|>",
        [said("a", "final"), said("I go on")],
        "<|end|> in a header",
    ),
    (
        "<|channel|>final<|message|>a<|end|><|start|>I go on\n\nhere<|end|>",
        [said("a", "final"), said("I go on\n\nhere")],
        "<|end|> in a header",
    ),
    (
        '<|channel|>commentary to=functions.f <|constrain|>json {"a": 1}<|call|>',
        [
            Message(
                "assistant",
                '{"a": 1}',
                channel="commentary",
                recipient="functions.f",
                content_type="<|constrain|>json",
            )
        ],
        "<|call|> in a header",
    ),
    ("<|channel|>analysis<|end|>" + FINAL, [OK], "<|end|> in a header"),
    # issue 38: words too many in a header
    (
        "<|channel|>commentary to=functions.f ––commentary json<|message|>{}<|call|>",
        [replace(said("{}", "commentary", "functions.f"), content_type="json")],
        "unexpected '––commentary' in a header",
    ),
    # issue 60: tokens where <|start|> belongs; and <|start|> itself left out, or said twice
    (
        "<|channel|>final<|message|>a<|end|> We need more<|start|>assistant<|message|>b<|end|>",
        [said("a", "final"), said("b")],
        "expected <|start|>",
    ),
    (
        "<|channel|>analysis<|message|>a<|end|>assistant<|channel|>final<|message|>b<|return|>",
        [said("a", "analysis"), said("b", "final")],
        "expected <|start|>",
    ),
    (
        "<|channel|>analysis<|message|>a<|end|><|channel|>final<|message|>b<|return|>",
        [said("a", "analysis"), said("b", "final")],
        "expected <|start|>",
    ),
    ("<|start|>assistant<|channel|>final<|message|>a<|end|>", [said("a", "final")], "<|start|> in"),
    (
        "<|message|>a<|end|><|start|><|start|>assistant<|message|>b<|end|>",
        [said("a"), said("b")],
        "<|start|> in a header",
    ),
    ("<|message|>a<|end|><|end|><|return|>" + FINAL, [said("a"), OK], "expected <|start|>"),
    # channels
    ("<|channel|><|message|>a<|end|>", [said("a")], "<|channel|> without a name"),
    ("<|channel|> final<|message|>a<|end|>", [said("a", "final")], "<|channel|> without a name"),
    ("<|channel|>commentary?<|message|>a<|end|>", [said("a", "commentary")], "channel 'comment"),
    (
        "<|channel|>commentary to=functions.f<|channel|>commentary<|message|>a<|call|>",
        [said("a", "commentary", "functions.f")],
        "more than one <|channel|>",
    ),
    # roles
    (
        "<|message|>a<|end|><|start|>assistantcommentary to=functions.f<|message|>b<|call|>",
        [said("a"), said("b", "commentary", "functions.f")],
        "unknown role 'assistantcommentary'",
    ),
    (
        "<|message|>a<|end|><|start|>assistantassistant<|channel|>final<|message|>b<|end|>",
        [said("a"), said("b", "final")],
        "unknown role 'assistantassistant'",
    ),
    (
        "<|message|>a<|end|><|start|>robot<|channel|>final<|message|>b<|end|>",
        [said("a"), said("b", "final")],
        "unknown role 'robot'",
    ),
    (
        "<|message|>a<|end|><|start|><|channel|>final<|message|>b<|end|>",
        [said("a"), said("b", "final")],
        "a header without a role",
    ),
    (
        "<|message|>a<|end|><|start|> to=functions.f<|channel|>commentary<|message|>b<|call|>",
        [said("a"), said("b", "commentary", "functions.f")],
        "a header without a role",
    ),
    # recipients and types
    (
        " to= functions.f<|message|>a<|call|>",
        [said("a", None, "functions.f")],
        "to= without a name",
    ),
    (
        " to=functions.f to=functions.g<|message|>a<|call|>",
        [said("a", None, "functions.f")],
        "to=functions.g after another recipient",
    ),
    (
        " json to=functions.f<|message|>a<|call|>",
        [replace(said("a", None, "functions.f"), content_type="json")],
        "to=functions.f after another recipient or type",
    ),
    (
        "<|channel|>final <|constrain|> json<|message|>a<|end|>",
        [replace(said("a", "final"), content_type="<|constrain|>json")],
        "<|constrain|> without a format",
    ),
    # ends and other special tokens
    ("<|message|>a" + FINAL, [said("a"), OK], "<|start|>' (id 200006) in a text"),
    (
        "<|channel|>analysis<|message|>a<|channel|>final<|message|>b<|return|>",
        [said("a", "analysis"), said("b", "final")],
        "<|channel|>' (id 200005) in a text",
    ),
    ("<|message|>a<|endoftext|>", [said("a")], "<|endoftext|>' (id 199999) in a text"),
    (
        "<|message|>a<|reserved_200013|>b<|end|>",
        [said("a<|reserved_200013|>b")],
        "<|reserved_200013|>' (id 200013) in a text",
    ),
    ("<|reserved_200013|><|message|>a<|end|>", [said("a")], "<|reserved_200013|>' (id 200013) in"),
]


@pytest.mark.parametrize(("text", "messages", "problem"), MALFORMED)
def test_malformed(text: str, messages: list[Message], problem: str) -> None:
    tokens = spelt(text)
    parser = HarmonyParser(o200k_harmony())
    events = [event for token in tokens for event in parser.feed(token)] + parser.finish()
    assert parser.messages == messages
    assert [event.message for event in events if isinstance(event, MessageEnd)] == messages
    assert parser.repairs == [event for event in events if isinstance(event, Repair)]
    assert problem in " ".join(repair.problem for repair in parser.repairs)
    first = parser.repairs[0]
    with pytest.raises(HarmonyError, match=r"^token \d+: ") as caught:
        parse(tokens, o200k_harmony(), strict=True)
    # a strict parser raises at the token that the tolerant one repaired first (a run of skipped
    # tokens is reported when it is over)
    position = int(str(caught.value).split(":")[0].removeprefix("token "))
    assert position <= first.position
    assert "expected" in str(caught.value) or first.problem in str(caught.value)


NO_MESSAGE = "in a header, expected <|message|>"
TAKEN, EMPTY = "the text begins after the header's fields", "left out, it has no text"
IN_TEXT = "in a text, expected <|end|>"
CHANNEL = "'<|channel|>' (id 200005)"
AGAIN = f"{CHANNEL}, expected <|start|>", "read as part of a header"
NO_ROLE = "a header without a role", "taken as the assistant's"
A, B = "<|message|>a<|end|>", "<|start|>assistant<|message|>b<|end|>"


@pytest.mark.parametrize(
    ("text", "role", "stops", "repairs"),
    [
        # between messages
        (A + "<|end|><|return|>" + B, "assistant", ["end", "end"], [
            Repair(5, "'<|end|><|return|>', expected <|start|>", "skipped")]),
        (A + " x" + B, "assistant", ["end", "end"], [
            Repair(4, "' x', expected <|start|>", "skipped", " x")]),
        (A + " x<|end|>", "assistant", ["end", "end"], [
            Repair(4, f"'<|end|>' (id 200007) {NO_MESSAGE}", TAKEN)]),
        (A + " x<|endoftext|>", "assistant", ["end", None], [
            Repair(4, f"'<|endoftext|>' (id 199999) {NO_MESSAGE}", TAKEN)]),
        (A + " x y", "assistant", ["end", None], [
            Repair(5, f"the end of the tokens {NO_MESSAGE}", TAKEN)]),
        (A + " x", "assistant", ["end"], [
            Repair(4, f"the end of the tokens {NO_MESSAGE}", EMPTY, " x")]),
        (A + "x\n\n<|end|>", "assistant", ["end", "end"], [
            Repair(5, f"'<|end|>' (id 200007) {NO_MESSAGE}", TAKEN)]),
        (A + "\n<|end|>", "assistant", ["end"], [
            Repair(5, "'\\n<|end|>', expected <|start|>", "skipped", "\n")]),
        (A + "<|channel|>final<|message|>b<|end|>", "assistant", ["end", "end"], [
            Repair(3, *AGAIN), Repair(5, *NO_ROLE)]),
        (A + " x<|channel|>final<|message|>b<|end|>", "assistant", ["end", "end"], [
            Repair(4, *AGAIN), Repair(4, "' x', expected <|start|>", "skipped", " x"),
            Repair(6, *NO_ROLE)]),
        (A + "user<|message|>b<|end|>", "assistant", ["end", "end"], [
            Repair(4, "'<|message|>' (id 200008), expected <|start|>", AGAIN[1])]),
        # in a header
        ("<|start|>" + A, "assistant", ["end"], [
            Repair(0, "<|start|> in a header, expected a role", "the header begins again"),
            Repair(1, *NO_ROLE)]),
        ("a<|channel|>final" + B, None, ["end"], [
            Repair(1, *AGAIN), Repair(1, "'a', expected <|start|>", "skipped", "a"),
            Repair(3, f"<|start|> {NO_MESSAGE}", EMPTY, "final")]),
        ("<|channel|>final" + B, "assistant", ["end"], [
            Repair(2, f"<|start|> {NO_MESSAGE}", EMPTY, "final")]),
        ("<|channel|>final<|return|>", "assistant", [], [
            Repair(2, f"<|return|> {NO_MESSAGE}", EMPTY, "final")]),
        ("<|channel|>final<|endoftext|>", "assistant", [], [
            Repair(2, f"'<|endoftext|>' (id 199999) {NO_MESSAGE}", EMPTY, "final")]),
        ("<|reserved_200013|>" + A, "assistant", ["end"], [
            Repair(0, f"'<|reserved_200013|>' (id 200013) {NO_MESSAGE}", "left out",
                   "<|reserved_200013|>")]),
        ("<|channel|>final to=f x<|call|>", "assistant", ["call"], [
            Repair(5, f"<|call|> {NO_MESSAGE}", TAKEN)]),
        ("<|channel|>final? to=f<|call|>", "assistant", ["call"], [
            Repair(5, f"<|call|> {NO_MESSAGE}", TAKEN),
            Repair(5, "'?' before to=", "left out", "?")]),
        ("<|channel|>final to=f", "assistant", [], [
            Repair(4, f"the end of the tokens {NO_MESSAGE}", EMPTY, "final to=f")]),
        ("<|start|>", None, [], [Repair(1, f"the end of the tokens {NO_MESSAGE}", EMPTY)]),
        # in a text
        ("<|message|>a", "assistant", [None], []),
        ("<|message|>a<|endoftext|>", "assistant", [None], [
            Repair(2, f"'<|endoftext|>' (id 199999) {IN_TEXT}", "the message ends")]),
        ("<|message|>a" + B, "assistant", [None, "end"], [
            Repair(2, f"'<|start|>' (id 200006) {IN_TEXT}", "the message ends")]),
        ("<|message|>a<|reserved_200013|>b<|end|>", "assistant", ["end"], [
            Repair(2, f"'<|reserved_200013|>' (id 200013) {IN_TEXT}", "kept as text")]),
        ("<|start|>user<|message|>a<|channel|>final<|message|>b<|end|>", None, [None, "end"], [
            Repair(4, f"{CHANNEL} {IN_TEXT}", "the message ends")]),
        ("<|start|>python<|message|>a<|channel|>final<|message|>b<|end|>", None, [None, "end"], [
            Repair(4, f"{CHANNEL} {IN_TEXT}", "the message ends"), Repair(6, *NO_ROLE)]),
    ],
)  # fmt: skip
def test_repairs(
    text: str, role: str | None, stops: list[str | None], repairs: list[Repair]
) -> None:
    """Each with its position, problem, action and text."""
    parser = HarmonyParser(o200k_harmony(), role=role)
    assert parser.header is None
    events = [event for token in spelt(text) for event in parser.feed(token)] + parser.finish()
    assert parser.repairs == repairs
    assert [event.stop for event in events if isinstance(event, MessageEnd)] == stops


def test_a_repair_as_text() -> None:
    assert str(Repair(1, "p", "a")) == "token 1: p: a"
    assert str(Repair(1, "p", "a", "t")) == "token 1: p: a: 't'"


def test_a_message_without_an_end_gives_its_role_to_a_channel_only() -> None:
    for rest, role in (
        ("<|channel|>final", "user"),
        ("<|start|>tool:f", "tool"),
        ("<|start|>user:b", "user"),
    ):
        text = f"<|start|>user<|message|>a{rest}<|message|>b<|end|>"
        assert [m.role for m in parse(spelt(text), o200k_harmony(), role=None)] == ["user", role]


def test_what_the_oracle_recovers_too() -> None:
    """Its strict=False recovers from a missing <|message|> at the beginning, and so do we."""
    for text, messages, _ in MALFORMED[:2]:
        assert theirs(spelt(text), "assistant", strict=False) == messages


SPECIALS = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>"]
WORDS = [
    "assistant",
    "user",
    "final",
    "analysis",
    "functions.f",
    "python",
    "to=functions.f",
    "json",
]
SPACED = [" json", " functions.f", " to=functions.f", " to=g", " to=", " python", " ", " x"]
RUNS = ["<|start|>assistant", "<|message|>a<|end|>", "<|channel|>final<|message|>"]
pieces = st.one_of(
    st.sampled_from([*SPECIALS, "<|call|>", "<|endoftext|>"]),
    st.sampled_from(WORDS),
    st.sampled_from(SPACED),
    st.sampled_from(RUNS),
    texts,
)


@given(st.lists(pieces, max_size=14), st.sampled_from(["assistant", None]))
@settings(max_examples=400)
def test_any_stream(parts: list[str], role: str | None) -> None:
    """Tolerant never fails; strict is never laxer than the oracle, and reads as it does."""
    tokens = spelt("".join(parts))
    tolerant = HarmonyParser(o200k_harmony(), role=role)
    for token in tokens:
        tolerant.feed(token)
    tolerant.finish()
    try:
        found = parse(tokens, o200k_harmony(), role=role, strict=True)
    except HarmonyError:
        assert tolerant.repairs
        return
    assert tolerant.repairs == []
    assert tolerant.messages == found
    if any(m.name and (m.role != "tool" or m.recipient is None) for m in found):
        return  # names: the oracle has no reading for them
    if tokens or role is None:  # it refuses no tokens at all after <|start|>assistant
        assert theirs(tokens, role) == [by_oracle(message) for message in found]


def test_strict_refuses_bytes_that_are_no_text_in_a_header() -> None:
    tokens = [*spelt("<|channel|>final"), 9552, *spelt("<|message|>a<|end|>")]
    with pytest.raises(HarmonyError, match=r"token 3: b'final \\xf0\\x9f', expected UTF-8"):
        parse(tokens, o200k_harmony(), strict=True)
    parser = HarmonyParser(o200k_harmony())
    for token in tokens:
        parser.feed(token)
    (found,) = parser.messages
    assert (found.text, found.channel) == ("a", "final")
    assert parser.repairs[0] == Repair(
        3, "b'final \\xf0\\x9f', expected UTF-8", "the invalid bytes become U+FFFD"
    )


def test_bad_arguments() -> None:
    with pytest.raises(TokenError, match="token id 201088"):
        HarmonyParser(o200k_harmony()).feed(201088)
    with pytest.raises(HarmonyError, match="parser for the role 'tool'"):
        HarmonyParser(o200k_harmony(), role="tool")
    with pytest.raises(HarmonyError, match="the end of the tokens in a header"):
        parse(spelt("<|channel|>final"), o200k_harmony(), strict=True)
    assert parse([], o200k_harmony(), strict=True) == []
