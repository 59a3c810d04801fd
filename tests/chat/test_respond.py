"""respond, stream and Chat, with a model that says what a script tells it to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ref import Model, generate
from gptoss_ref.backend import NUMPY
from gptoss_ref.chat import (
    Chat,
    DeveloperContent,
    Message,
    MessageEnd,
    MessageStart,
    PrefixCache,
    Repair,
    Reply,
    SystemContent,
    TextDelta,
    Tool,
    ToolCall,
    build_conversation,
    parse,
    render_conversation,
    respond,
    small_harmony,
    stream,
)
from gptoss_ref.errors import GptOssError, HarmonyError, TokenError
from tests.support.strategies import as_weights, random_arrays, small_config

TOKENIZER = small_harmony(1000)
ADD = Tool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "number"}}})
CONFIDENCE = 5.0


@dataclass
class ScriptedCache:
    """Holds the tokens themselves, where a real one holds keys and values."""

    tokens: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.tokens)


class ScriptedModel:
    """Continues the n-th prompt with the n-th reply, one token a call, then with zeros.

    `contexts` are the prompts as the model saw them, cached tokens included.
    """

    def __init__(self, *replies: str, context: int = 4096) -> None:
        self.tokenizer = TOKENIZER
        self.config = SimpleNamespace(max_position_embeddings=context)
        self.backend = NUMPY
        self.replies = iter([spelt(reply) for reply in replies])
        self.contexts: list[list[int]] = []
        self.passes: list[int] = []

    def new_cache(self) -> ScriptedCache:
        return ScriptedCache()

    def __call__(
        self, tokens: Iterable[int], cache: ScriptedCache, *, last_only: bool = False
    ) -> np.ndarray:
        new = list(tokens)
        if cache.length + len(new) > self.config.max_position_embeddings:
            raise TokenError("the context is full")
        cache.tokens += new
        self.passes.append(len(new))
        if len(new) > 1:
            self.contexts.append(list(cache.tokens))
            self.reply = next(self.replies)
        at = cache.length - len(self.contexts[-1])
        logits = np.zeros((1, TOKENIZER.vocab_size), np.float32)
        logits[0, self.reply[at] if at < len(self.reply) else 0] = CONFIDENCE
        return logits


def spelt(text: str) -> list[int]:
    """Tokens of a text in which special tokens are spelt."""
    return TOKENIZER.encoding.encode(text, allowed_special="all")


def model_saying(*replies: str, context: int = 4096) -> Any:
    return ScriptedModel(*replies, context=context)


THINK = "<|channel|>analysis<|message|>27+58 is 85.<|end|><|start|>assistant"
ANSWER = "<|channel|>final<|message|>It is 85 — ✓.<|return|>"
CALL = (
    " to=functions.add<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"  # as rendered
)


def call(arguments: str) -> str:
    return CALL.replace("{}", arguments)


# --- one answer -----------------------------------------------------------------------------------


def test_an_answer() -> None:
    model = model_saying(THINK + ANSWER)
    events = []
    reply = respond(model, "What is 27 + 58?", on_event=events.append)
    assert reply.analysis == "27+58 is 85."
    assert reply.final == "It is 85 — ✓."
    assert (reply.commentary, reply.tool_calls, reply.repairs) == ("", (), ())
    assert reply.messages == (
        Message.assistant("27+58 is 85.", "analysis"),
        Message.assistant("It is 85 — ✓.", "final"),
    )
    assert reply.tokens == tuple(spelt(THINK + ANSWER))
    assert reply.stop_reason == "return"
    one = CONFIDENCE - math.log(math.exp(CONFIDENCE) + TOKENIZER.vocab_size - 1)
    assert reply.logprobs == pytest.approx([one] * len(reply.tokens), rel=1e-6)
    assert 0 < reply.first_seconds < reply.seconds < 600
    assert reply.tokens_per_second == pytest.approx(len(reply.tokens) / reply.seconds)
    # what the model was asked, and that one token followed another
    asked = [Message.system(), Message.user("What is 27 + 58?")]
    assert model.contexts == [render_conversation(asked, TOKENIZER)]
    assert reply.prompt_tokens == len(model.contexts[0])
    assert model.passes == [reply.prompt_tokens] + [1] * (len(reply.tokens) - 1)
    # the events tell the same
    assert [e.header.channel for e in events if isinstance(e, MessageStart)] == [
        "analysis",
        "final",
    ]
    assert [e.message for e in events if isinstance(e, MessageEnd)] == list(reply.messages)
    final = [e.text for e in events if isinstance(e, TextDelta) and e.header.channel == "final"]
    assert "".join(final) == reply.final
    assert len(final) > 3
    plain = json.loads(json.dumps(reply.to_dict()))
    assert plain == {
        "analysis": reply.analysis,
        "commentary": "",
        "final": reply.final,
        "tool_calls": [],
        "tokens": list(reply.tokens),
        "logprobs": list(reply.logprobs),
        "prompt_tokens": reply.prompt_tokens,
        "cached_tokens": 0,
        "seconds": reply.seconds,
        "tokens_per_second": reply.tokens_per_second,
        "stop_reason": "return",
        "repairs": [],
    }
    assert replace(reply, seconds=0.0).tokens_per_second == 0


def test_the_defaults_of_sampling() -> None:
    """Of respond, stream and Chat: greedy; with a temperature the whole distribution, seed 0."""
    text = "<|channel|>final<|message|>a b c d e f g<|return|>"
    whole = {"top_k": 0, "top_p": 1.0, "seed": 0, "max_new_tokens": 1024}

    def tokens(answer: Any) -> list[tuple[int, ...]]:
        warm = answer(temperature=3.0)
        assert warm == answer(temperature=3.0, **whole)
        assert answer() == answer(temperature=0.0, **whole) == tuple(spelt(text))
        return [warm]

    def streamed(**options: Any) -> tuple[int, ...]:
        *_, last = stream(model_saying(text), "?", **options)
        assert isinstance(last, Reply)
        return last.tokens

    found = {
        *tokens(lambda **options: respond(model_saying(text), "?", **options).tokens),
        *tokens(streamed),
        *tokens(lambda **options: Chat(model_saying(text), **options).ask("?").tokens),
    }
    (warm,) = found
    assert warm != tuple(spelt(text))


def test_what_of_a_prompt_is_in_the_cache() -> None:
    prefix = PrefixCache(model_saying())
    for prompt, pending in (
        ([1, 2, 3, 4], [4]),
        ([1, 2, 3], [1, 2, 3]),
        ([1, 2], [1, 2]),
        ([1, 9, 3, 4], [1, 9, 3, 4]),
    ):
        prefix.tokens, held = [1, 2, 3], prefix.cache
        assert prefix.begin(prompt) == pending
        assert (prefix.cache is held) == (pending == [4])
        assert prefix.tokens == ([1, 2, 3] if pending == [4] else [])


def test_events_come_as_the_tokens_do() -> None:
    model = model_saying(ANSWER)
    events = stream(model, "?")
    assert model.passes == []
    assert isinstance(next(events), MessageStart)
    header = spelt("<|channel|>final<|message|>")
    assert len(model.passes) == len(header)
    assert isinstance(next(events), TextDelta)
    assert len(model.passes) == len(header) + 1
    *_, last = events
    assert isinstance(last, Reply)


def test_effort_instructions_and_tools_reach_the_prompt() -> None:
    model = model_saying(ANSWER)
    tool = {"type": "function", "function": {"name": "sum", "description": "Adds."}}
    respond(model, "?", reasoning="high", instructions="Be brief.", tools=[tool, ADD])
    asked = [
        Message.system(SystemContent(reasoning_effort="high")),
        Message.developer(
            DeveloperContent.with_functions("Be brief.", [Tool("sum", "Adds."), ADD])
        ),
        Message.user("?"),
    ]
    assert model.contexts == [render_conversation(asked, TOKENIZER)]


def test_several_messages_of_a_channel_and_one_without() -> None:
    reply = respond(
        model_saying(
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b"
            "<|end|><|start|>assistant<|channel|>commentary<|message|>c<|end|>"
            "<|start|>assistant<|message|>d<|return|>"
        ),
        "?",
    )
    assert (reply.analysis, reply.commentary, reply.final) == ("a\n\nb", "c", "d")


def test_malformed_replies_are_repaired_and_said_so() -> None:
    reply = respond(model_saying("I must refuse<|end|><|start|>assistant" + ANSWER), "?")
    assert reply.final == "I must refuse\n\nIt is 85 — ✓."
    assert [repair.problem for repair in reply.repairs] == [
        "<|end|> in a header, expected <|message|>"
    ]
    assert "expected <|message|>" in reply.to_dict()["repairs"][0]


# --- where it ends --------------------------------------------------------------------------------


def test_end_does_not_stop_and_endoftext_does() -> None:
    reply = respond(model_saying("<|channel|>final<|message|>a<|end|><|endoftext|>b"), "?")
    assert (reply.final, reply.stop_reason) == ("a", "endoftext")
    assert reply.tokens[-1] == TOKENIZER.special_id("endoftext")


@given(st.integers(0, len(spelt(THINK + ANSWER))))
def test_cut_short_anywhere(length: int) -> None:
    """What came is in the reply, whole characters and half messages too."""
    everything = spelt(THINK + ANSWER)
    reply = respond(model_saying(THINK + ANSWER), "?", max_new_tokens=length)
    assert list(reply.tokens) == everything[:length]
    assert reply.stop_reason == ("return" if length == len(everything) else "length")
    assert "27+58 is 85.".startswith(reply.analysis)
    assert "It is 85 — ✓.".startswith(reply.final.rstrip("\N{REPLACEMENT CHARACTER}"))
    assert list(reply.messages) == parse(reply.tokens, TOKENIZER)


def test_the_context_is_an_end_too() -> None:
    prompt = render_conversation(build_conversation("?"), TOKENIZER)
    model = model_saying(THINK + ANSWER, context=len(prompt) + 7)
    reply = respond(model, "?")
    # the last token is chosen, not computed
    assert (len(reply.tokens), reply.stop_reason) == (8, "length")
    reply = respond(model_saying(THINK + ANSWER, context=len(prompt)), "?")
    assert (len(reply.tokens), reply.stop_reason) == (1, "length")
    with pytest.raises(TokenError, match="context is full"):
        respond(model_saying(ANSWER, context=len(prompt) - 1), "?")


def test_a_call_that_was_cut_short_is_no_call() -> None:
    length = len(spelt(call('{"a": 12}'))) - 3
    reply = respond(model_saying(call('{"a": 12}')), "?", max_new_tokens=length)
    assert reply.tool_calls == ()
    assert reply.messages[0].recipient == "functions.add"
    assert reply.final == ""
    (repair,) = reply.repairs
    assert repair.problem == "the end of the tokens in a call of functions.add"
    assert repair.action == "left out of the calls"
    assert repair.text == reply.messages[0].text == '{"a": '
    assert repr(repair.text) in reply.to_dict()["repairs"][0]


@pytest.mark.parametrize("end", ["<|return|>", "<|end|>", "<|endoftext|>", ""])
def test_an_answer_without_a_header(end: str) -> None:
    text = '{"colour": "red"}'
    for length in range(1, len(spelt(text)) + 1):
        reply = respond(model_saying(text + end), "?", max_new_tokens=length)
        assert reply.final == TOKENIZER.decode(reply.tokens)
    reply = respond(model_saying(text + end), "?", max_new_tokens=len(spelt(text + end)))
    assert reply.final == text
    assert reply.repairs


# --- other roles and channels ---------------------------------------------------------------------

PLAYS_THE_USER = (
    "<|channel|>final<|message|>A<|end|><|start|>user<|message|>B<|end|>"
    "<|start|>assistant<|channel|>final<|message|>C<|return|>"
)


def test_the_answer_ends_where_the_model_plays_another_role() -> None:
    model = model_saying(PLAYS_THE_USER)
    reply = respond(model, "?")
    assert (reply.final, reply.stop_reason) == ("A", "other_role")
    assert reply.messages == (Message.assistant("A"),)
    *_, last = stream(model_saying(PLAYS_THE_USER), "?")
    assert isinstance(last, Reply)
    assert last.stop_reason == "other_role"
    assert [repair.problem for repair in reply.repairs] == ["a message of the role user"]
    # nothing was generated after that header
    assert TOKENIZER.decode(reply.tokens).endswith("<|start|>user<|message|>")
    assert len(model.passes) == len(reply.tokens)


def test_or_goes_on_when_told_to() -> None:
    events = []
    reply = respond(
        model_saying(PLAYS_THE_USER), "?", stop_at_other_roles=False, on_event=events.append
    )
    assert (reply.final, reply.stop_reason) == ("A\n\nC", "return")
    assert [message.role for message in reply.messages] == ["assistant", "user", "assistant"]
    assert [repair.text for repair in reply.repairs] == ["B"]
    assert list(reply.repairs) == [event for event in events if isinstance(event, Repair)]


def test_a_chat_goes_on_after_it() -> None:
    model = model_saying(PLAYS_THE_USER, SHORT)
    chat = Chat(model)
    assert chat.ask("a?").stop_reason == "other_role"
    assert chat.messages == [Message.user("a?"), Message.assistant("A")]
    assert chat.ask("b?").final == "85"
    asked = [Message.user("a?"), Message.assistant("A"), Message.user("b?")]
    assert model.contexts[1] == render_conversation(build_conversation(asked), TOKENIZER)
    whole = Chat(model_saying(PLAYS_THE_USER), stop_at_other_roles=False)
    assert whole.ask("a?").final == "A\n\nC"


def test_a_channel_of_another_name() -> None:
    events = []
    reply = respond(
        model_saying("<|channel|>thought<|message|>hm<|return|>"), "?", on_event=events.append
    )
    assert (reply.analysis, reply.final) == ("hm", "")
    assert [(repair.problem, repair.action) for repair in reply.repairs] == [
        ("a message in the channel 'thought'", "read as analysis")
    ]
    assert [event for event in events if isinstance(event, Repair)] == list(reply.repairs)
    assert reply.repairs[0].position == len(reply.tokens) - 1


# --- tools ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "arguments", "error"),
    [
        ('{"a": 27, "b": [58]}', {"a": 27, "b": [58]}, None),
        ("{}", {}, None),
        ('{"a": 27', None, "not JSON"),
        ("", None, "not JSON"),
        ("print(1)", None, "not JSON"),
        ("[1, 2]", [1, 2], "expected a JSON object, found list"),
        ("[" * 100_000, None, "not JSON"),
        ('{"a": ' + "9" * 5000 + "}", None, "not JSON"),
        # RFC 8259 and Python's json differ
        ('{"a": NaN}', None, "not JSON: NaN"),
        ('{"a": [-Infinity]}', None, "not JSON: -Infinity"),
        ("NaN", None, "not JSON: NaN"),
        ('{"a": 1e999}', None, "not JSON: 1e999 is beyond"),
        ('{"a": 1,}', None, "not JSON"),
        ("{'a': 1}", None, "not JSON"),
        ("{a: 1}", None, "not JSON"),
        ('{"a": 01}', None, "not JSON"),
        ('{"a": .5}', None, "not JSON"),
        ('{"a": True}', None, "not JSON"),
        ('{"a": "\n"}', None, "not JSON"),
        ('{"a": 1} {}', None, "not JSON"),
        ('{"a": 1} // one', None, "not JSON"),
        ('\ufeff{"a": 1}', None, "not JSON"),
        ('{"a": "\\ud800"}', None, "not JSON"),
        ('{"a": "\\ud83d\\ude80"}', {"a": "🚀"}, None),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', {"a": 1, "b": {"c": 2}}, "the key 'c' is given twice"),
        (' \n{"a": 1e308}\t', {"a": 1e308}, None),
    ],
)
def test_arguments(text: str, arguments: Any, error: str | None) -> None:
    found = ToolCall.from_message(Message.call("functions.add", text))
    assert (found.text, found.arguments, found.name) == (text, arguments, "add")
    json.dumps(found.arguments, ensure_ascii=False, allow_nan=False).encode()
    assert (found.error is None) if error is None else found.error.startswith(error)


def test_a_call_and_its_result() -> None:
    model = model_saying(THINK + call('{"a": 27}'), "<|channel|>final<|message|>85<|return|>")
    prefix = PrefixCache(model)
    conversation = build_conversation("What is 27 + 58?", tools=[ADD])
    reply = respond(model, conversation, prefix=prefix)
    assert (reply.stop_reason, reply.final, reply.cached_tokens) == ("call", "", 0)
    (asked,) = reply.tool_calls
    assert (asked.recipient, asked.arguments, asked.error) == ("functions.add", {"a": 27}, None)
    assert asked.answer("85") == Message.tool("functions.add", "85")
    for channel in ("analysis", "commentary", "final", None):
        message = Message("assistant", "{}", recipient="functions.add", channel=channel)
        assert ToolCall.from_message(message).answer("85").channel == channel
    assert asked.answer({"sum": 85}).text == '{"sum": 85}'
    (plain,) = reply.to_dict()["tool_calls"]
    assert plain == {
        "recipient": "functions.add",
        "name": "add",
        "arguments": {"a": 27},
        "text": '{"a": 27}',
        "error": None,
        "channel": "commentary",
    }
    assert (asked.name, ToolCall("functions.a.b", "", None, None).name) == ("add", "a.b")
    assert ToolCall("python", "", None, None).name == "python"

    conversation += [*reply.messages, asked.answer("85")]
    second = respond(model, conversation, prefix=prefix)
    assert (second.final, second.stop_reason) == ("85", "return")
    # the analysis stays while the call is open, so all that was computed is a prefix
    assert model.contexts[1] == render_conversation(conversation, TOKENIZER)
    assert second.cached_tokens == reply.prompt_tokens + len(reply.tokens) - 1
    assert model.contexts[1][: second.cached_tokens] == [*model.contexts[0], *reply.tokens[:-1]]


# --- conversations --------------------------------------------------------------------------------

SHORT = "<|channel|>final<|message|>85<|return|>"


def test_chat_without_analysis_goes_on_in_its_cache() -> None:
    model = model_saying(SHORT, SHORT, SHORT)
    chat = Chat(model, reasoning="low", instructions="Be brief.")
    first, second = chat.ask("27 + 58?"), chat.ask("And again?")
    assert first.cached_tokens == 0
    assert second.cached_tokens == first.prompt_tokens + len(first.tokens) - 1
    said = [Message.user("27 + 58?"), Message.assistant("85")]
    said += [Message.user("And again?"), Message.assistant("85")]
    assert chat.messages == said
    asked = build_conversation(said[:3], reasoning="low", instructions="Be brief.")
    assert model.contexts[1] == render_conversation(asked, TOKENIZER)
    chat.reset()
    assert chat.ask("27 + 58?").prompt_tokens == first.prompt_tokens
    assert model.contexts[2] == model.contexts[0]


def test_chat_drops_the_analysis_of_answers_given() -> None:
    model = model_saying(*[THINK + ANSWER] * 3)
    chat = Chat(model)
    for question in ("a?", "b?", "c?"):
        assert chat.ask(question).cached_tokens == 0  # the prompt without the analysis is another
    assert [message.channel for message in chat.messages if message.role == "assistant"] == [
        "analysis",
        "final",
    ] * 3
    answer = Message.assistant("It is 85 — ✓.")
    seen = [Message.user("a?"), answer, Message.user("b?"), answer, Message.user("c?")]
    assert model.contexts[2] == render_conversation(build_conversation(seen), TOKENIZER)


def test_chat_with_a_tool() -> None:
    model = model_saying(THINK + call('{"a": 27}'), SHORT)
    chat = Chat(model, tools=[ADD])
    reply = chat.ask("27 + 58?")
    final = chat.ask([asked.answer("85") for asked in reply.tool_calls])
    assert final.final == "85"
    assert final.cached_tokens > reply.prompt_tokens
    assert [message.role for message in chat.messages] == [
        "user",
        "assistant",
        "assistant",
        "tool",
        "assistant",
    ]


@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_an_answer_broken_off_leaves_the_chat_as_it_was(after: int) -> None:
    """Ctrl-C ends the loop over the events; the next question finds history and cache in order."""
    model = model_saying(SHORT, THINK + ANSWER, SHORT)
    chat = Chat(model)
    chat.ask("a?")
    before = list(chat.messages)
    events = chat.send("b?")
    for _ in range(after):
        next(events)
    events.close()
    assert chat.messages == before
    if after == 0:
        next(model.replies)
    reply = chat.ask("c?")
    asked = build_conversation([*before, Message.user("c?")])
    assert model.contexts[-1] == render_conversation(asked, TOKENIZER)
    assert reply.final == "85"


def test_a_failing_model_leaves_the_chat_as_it_was() -> None:
    model = model_saying(SHORT, THINK + ANSWER, SHORT, context=200)
    chat = Chat(model)
    chat.ask("a?")
    before = list(chat.messages)
    with pytest.raises(TokenError, match="context is full"):
        chat.ask("b? " * 100)
    assert chat.messages == before
    assert chat.ask("c?").final == "It is 85 — ✓."


# --- a real model, of random weights --------------------------------------------------------------


@pytest.fixture(scope="module")
def random_model() -> Model:
    """Windows of 6, so that its rings are full long before the prompt ends."""
    tokenizer = small_harmony(300)
    config = small_config(vocab=tokenizer.vocab_size, max_position_embeddings=1024)
    model = Model(config, as_weights(random_arrays(config, 5)), policy="float64")
    model.__dict__["tokenizer"] = tokenizer
    return model


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_kept_prefix_changes_nothing(random_model: Model, temperature: float) -> None:
    conversation = build_conversation("a?", reasoning="low")
    prefix = PrefixCache(random_model)
    first = respond(random_model, conversation, prefix=prefix, max_new_tokens=1)
    conversation += [Message.assistant("b"), Message.user("c?")]
    sampling: dict[str, Any] = {"max_new_tokens": 12, "temperature": temperature, "seed": 3}
    alone = respond(random_model, conversation, **sampling)
    second = respond(random_model, conversation, prefix=prefix, **sampling)
    assert (alone.cached_tokens, second.cached_tokens) == (0, first.prompt_tokens)
    assert second.tokens == alone.tokens
    assert second.logprobs == pytest.approx(alone.logprobs, rel=1e-9)
    # a prompt that does not begin with what the cache holds is computed anew
    other = respond(random_model, build_conversation("d?"), prefix=prefix, **sampling)
    assert other.cached_tokens == 0
    assert other.tokens == respond(random_model, build_conversation("d?"), **sampling).tokens


def test_a_reply_is_what_generate_yields(random_model: Model) -> None:
    prompt = render_conversation(build_conversation("a?"), random_model.tokenizer)
    sampling: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 7}
    expected = list(generate(random_model, prompt, 20, stop_tokens=(), **sampling))
    reply = respond(random_model, "a?", max_new_tokens=20, **sampling)
    assert list(reply.tokens) == [int(token) for token in expected][: len(reply.tokens)]
    assert reply.logprobs == tuple(token.logprob for token in expected[: len(reply.tokens)])
    assert list(reply.messages) == parse(reply.tokens, random_model.tokenizer)


# --- the bundled model ----------------------------------------------------------------------------

CALCULATOR = {
    "name": "calculator",
    "description": "Evaluates an arithmetic expression.",
    "parameters": {
        "type": "object",
        "properties": {"expression": {"type": "string"}},
        "required": ["expression"],
    },
}


def test_tiny_answers(tiny: Model) -> None:
    high = respond(tiny, "What is 27 + 58?", reasoning="high")
    assert "85" in high.final
    assert high.analysis
    assert (high.stop_reason, high.repairs) == ("return", ())
    low = respond(tiny, "What is 27 + 58?", reasoning="low")
    assert (low.analysis, low.stop_reason) == ("", "return")
    assert len(low.tokens) < len(high.tokens)


def test_tiny_calls_a_tool_and_reads_its_result(tiny: Model) -> None:
    chat = Chat(tiny, reasoning="medium", tools=[CALCULATOR])
    asked = chat.ask("What is 27 + 58?")
    (wanted,) = asked.tool_calls
    assert wanted.recipient == "functions.calculator"
    assert wanted.error is None
    assert wanted.arguments["expression"].replace(" ", "") == "27+58"
    answered = chat.ask(wanted.answer("85"))
    assert "85" in answered.final
    # its header is the one that history renders, so the call and all before it were in the cache
    assert answered.cached_tokens == asked.prompt_tokens + len(asked.tokens) - 1


def test_tiny_tokenizes_as_transformers_does(tiny: Model) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(tiny.path)
    for text in ("What is 27 + 58?", "  Ünïcode 漢 \n\n don't 👩‍🚀", '{"a": [1, 23]}'):
        tokens = tiny.tokenizer.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == tokens
        assert theirs.decode(tokens) == tiny.tokenizer.decode(tokens) == text
    for name, number in tiny.tokenizer.special.items():
        assert theirs.convert_tokens_to_ids(name) == number
    assert set(tiny.tokenizer.stop_tokens) < set(tiny.stop_tokens)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"message": ""}, "nothing to answer"),
        ({"message": []}, "nothing to answer"),
        ({"message": "?", "reasoning": "max"}, "effort 'max': expected one of low"),
        ({"message": "?", "tools": [3]}, "tool 3: expected an object"),
        ({"message": [{"role": "user", "content": "?"}]}, "expected a Message"),
        ({"message": [Message.user("?"), "more"]}, "message 'more': expected a Message"),
        ({"message": [Message.system(), Message.user("?")], "reasoning": "low"}, "both reasoning"),
        (
            {"message": [Message.developer("x"), Message.user("?")], "instructions": "y"},
            "both a developer message",
        ),
        (
            {"message": [Message.developer("x"), Message.user("?")], "tools": [ADD]},
            "both a developer message",
        ),
    ],
)
def test_bad_conversations(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(HarmonyError, match=match):
        respond(model_saying(ANSWER), **arguments)


def test_one_message_is_a_conversation() -> None:
    asked = Message.user("?")
    assert build_conversation(asked) == build_conversation([asked]) == build_conversation("?")


def test_a_result_keeps_its_letters() -> None:
    answered = ToolCall("f.g", "{}", {}, None).answer({"é": "漢"})
    assert answered == Message.tool("f.g", '{"é": "漢"}')


def test_bad_sampling() -> None:
    with pytest.raises(GptOssError, match="temperature"):
        respond(model_saying(ANSWER), "?", temperature=-1)
    with pytest.raises(HarmonyError, match="nothing to answer"):
        Chat(model_saying(ANSWER)).ask("")
