"""Laws that every answer of a correct server obeys, whatever the model says."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gptoss_ref.verify.observe.adapters.transport import Answer
from gptoss_ref.verify.rendering.server import Server
from gptoss_ref.verify.serving.answers import CHAT, RESPONSES, Said, ask, ask_streamed

_STOPS = re.compile(r"<\|(?:return|end|call|endoftext)\|>")
_HEADERS = re.compile(
    r"<\|(?:start|channel|message|constrain)\|>"
    r"|^(?:analysis|commentary|final)(?=[A-Z<{]|to=)|assistant(?:analysis|commentary|final)"
)
_TOOL = {
    "name": "add",
    "description": "Adds two numbers.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
        "required": ["a", "b"],
    },
}
HELLO = "Say hello in one word."
CHARACTERS = "Repeat this: 👩‍🚀 é 日本 ᚠ"
SUM = "Use the tool to add 27 and 58."
LONG = "a" * 20_000
TOKENS = 96


@dataclass(frozen=True)
class Fault:
    """A violation of a law.

    Attributes:
        name: of the law, e.g. ``"channel-in-content"``.
        api: ``/v1/chat/completions`` or ``/v1/responses``.
        what: the observation, in words.
    """

    name: str
    api: str
    what: str


LAWS: dict[str, str] = {
    "answer-form": "Answers have the form of the API.",
    "stop-token-shown": "A text does not contain the token that ended it.",
    "channel-in-content": "Headers and channels are not part of a text.",
    "reasoning-in-content": "The reasoning is not part of the answer's content.",
    "tool-call-form": "A tool call has an id, a bare name and its arguments as text.",
    "finish-reason": "The answer says why it ended: stop, length or tool_calls.",
    "limit-ignored": "An answer has no more tokens than the limit.",
    "usage-wrong": "The counts of tokens add up.",
    "result-refused": "A tool's result is accepted on the next turn.",
    "stream-differs": "At temperature 0, a stream and a whole answer are the same.",
    "character-cut": "A stream never splits a character.",
    "empty-content-fails": "An empty text does not make the server fail.",
    "long-text-fails": "A long text without spaces does not make the server fail.",
    "bad-request-fails": "An invalid request is refused, and does not make the server fail.",
    "logprobs-wrong": "Probabilities sum to at most one, and the chosen token's agrees.",
}
"""The laws by name."""


class Api:
    """One of the two APIs of a server, with its requests."""

    def __init__(self, server: Server, path: str) -> None:
        self.server, self.path = server, path

    def body(self, text: str, *, tools: bool = False, tokens: int = TOKENS) -> dict[str, Any]:
        """A question at temperature 0."""
        if self.path == CHAT:
            body: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
            limit = "max_tokens"
            tool: dict[str, Any] = {"type": "function", "function": _TOOL}
        else:
            body, limit = {"input": text}, "max_output_tokens"
            tool = {"type": "function", **_TOOL}
        body |= {"temperature": 0, limit: tokens}
        return body | ({"tools": [tool]} if tools else {})

    def with_result(self) -> dict[str, Any]:
        """A request with a conversation that ends with a tool's result."""
        body = self.body(SUM, tools=True)
        arguments = json.dumps({"a": 27, "b": 58})
        if self.path == CHAT:
            function = {"name": "add", "arguments": arguments}
            call = {"id": "call_1", "type": "function", "function": function}
            body["messages"] += [
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_1", "content": "85"},
            ]
        else:
            call = {"type": "function_call", "call_id": "call_1", "name": "add"}
            body["input"] = [
                {"type": "message", "role": "user", "content": SUM},
                {**call, "arguments": arguments},
                {"type": "function_call_output", "call_id": "call_1", "output": "85"},
            ]
        return body


def faults(api: Api, progress: Callable[[str], None]) -> Iterator[Fault]:
    """All faults of one API."""

    def fault(name: str, what: str) -> Fault:
        return Fault(name, api.path, what)

    progress("a question")
    hello = _asked(api, HELLO)
    if isinstance(hello, Answer):
        yield fault("answer-form", f"a plain question is refused: {hello.complaint()}")
        return
    yield from _of_answer(api, hello, TOKENS)
    progress("a stream")
    yield from _of_stream(api, HELLO, hello)
    progress("characters")
    whole = _asked(api, CHARACTERS)
    if isinstance(whole, Said):
        yield from _of_answer(api, whole, TOKENS)
        yield from _of_stream(api, CHARACTERS, whole)
    progress("a limit")
    short = ask(api.server, api.path, api.body(HELLO, tokens=16))
    if isinstance(short, Said):
        yield from _of_answer(api, short, 16)
    progress("a tool")
    call = ask(api.server, api.path, api.body(SUM, tools=True))
    if isinstance(call, Said):
        yield from _of_answer(api, call, TOKENS)
        yield from _of_stream(api, SUM, call, tools=True)
    else:
        yield fault("answer-form", f"a request with a tool is refused: {call.complaint()}")
    progress("a tool's result")
    result = ask(api.server, api.path, api.with_result())
    if isinstance(result, Said):
        yield from _of_answer(api, result, TOKENS)
    else:
        yield fault("result-refused", result.complaint())
    progress("odd texts")
    for name, text in (("empty-content-fails", ""), ("long-text-fails", LONG)):
        odd = ask(api.server, api.path, api.body(text, tokens=4))
        if isinstance(odd, Answer) and odd.status >= 500:
            yield fault(name, odd.complaint())
    wrong = api.body(HELLO)
    wrong["messages" if api.path == CHAT else "input"] = [{"role": "nobody", "content": 7}]
    bad = ask(api.server, api.path, wrong)
    if isinstance(bad, Answer) and bad.status >= 500:
        yield fault("bad-request-fails", bad.complaint())
    if api.path == CHAT:
        progress("log-probabilities")
        yield from _of_logprobs(api)


def _asked(api: Api, text: str) -> Said | Answer:
    return ask(api.server, api.path, api.body(text))


def _of_answer(api: Api, said: Said, limit: int) -> Iterator[Fault]:
    """Faults of a single answer."""

    def fault(name: str, what: str) -> Fault:
        return Fault(name, api.path, what)

    for what in said.wrong:
        yield fault("answer-form", what)
    for where, text in (("content", said.content), ("reasoning", said.reasoning)):
        if found := _STOPS.search(text):
            yield fault("stop-token-shown", f"{where} holds {found[0]}")
        if found := _HEADERS.search(text):
            yield fault("channel-in-content", f"{where} holds {found[0]!r}: {text[:60]!r}")
    thought = said.reasoning.strip()
    if len(thought) > 3 and said.content.lstrip().startswith(thought):
        yield fault("reasoning-in-content", f"content begins with the reasoning: {thought[:60]!r}")
    if "<think>" in said.content:
        yield fault("reasoning-in-content", "content holds <think>")
    for call in said.calls:
        if not isinstance(call.id, str) or not call.id:
            yield fault("tool-call-form", f"a tool call has the id {call.id!r}")
        name = call.name
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name) or "functions." in name:
            yield fault("tool-call-form", f"a tool call names {name!r}, expected the bare name")
        if not isinstance(call.arguments, str):
            kind = type(call.arguments).__name__
            yield fault("tool-call-form", f"arguments are {kind}, expected JSON as text")
    yield from _of_ending(api, said)
    yield from _of_usage(api, said, limit)


def _of_ending(api: Api, said: Said) -> Iterator[Fault]:
    known: tuple[str, ...] = ("stop", "length", "tool_calls", "content_filter")
    if api.path == RESPONSES:
        known = ("completed", "incomplete")
    if said.ended not in known:
        yield Fault(
            "finish-reason", api.path, f"it is {said.ended!r}, expected {' or '.join(known)}"
        )
    elif api.path == CHAT and said.calls and said.ended != "tool_calls":
        yield Fault("finish-reason", api.path, f"a tool is called, but it is {said.ended!r}")
    elif said.ended == "tool_calls" and not said.calls:
        yield Fault("finish-reason", api.path, "it is 'tool_calls', but no tool is called")


def _of_usage(api: Api, said: Said, limit: int) -> Iterator[Fault]:
    """Faults of the token counts, if there are any."""
    asked, got = ("prompt", "completion") if api.path == CHAT else ("input", "output")
    counts: list[Any] = [said.usage.get(f"{name}_tokens") for name in (asked, got, "total")]
    if not all(isinstance(count, int) for count in counts):
        return
    before, made, total = counts
    if before + made != total or before <= 0:
        yield Fault("usage-wrong", api.path, f"{before} and {made} tokens make {total}")
    if made > limit:
        yield Fault("limit-ignored", api.path, f"{made} tokens, asked for at most {limit}")
    ended = {"length", "incomplete"}
    if made >= limit and said.ended not in (*ended, "stop", "tool_calls", "completed"):
        yield Fault("finish-reason", api.path, f"the limit ended it, but it is {said.ended!r}")


def _of_stream(api: Api, text: str, whole: Said, *, tools: bool = False) -> Iterator[Fault]:
    said = ask_streamed(api.server, api.path, api.body(text, tools=tools))
    if isinstance(said, Answer):
        yield Fault("stream-differs", api.path, f"a stream is refused: {said.complaint()}")
        return
    for what in said.wrong:
        name = "character-cut" if "character" in what else "answer-form"
        yield Fault(name, api.path, f"streamed: {what}")
    for delta in said.deltas:
        if re.search(r"[\ud800-\udfff]", delta) or (
            "\ufffd" in delta and "\ufffd" not in whole.content + whole.reasoning
        ):
            yield Fault("character-cut", api.path, f"a piece of the stream is {delta!r}")
            return
    for where, found in (("content", said.content), ("reasoning", said.reasoning)):
        if bad := _STOPS.search(found) or _HEADERS.search(found):
            name = "stop-token-shown" if _STOPS.search(found) else "channel-in-content"
            yield Fault(name, api.path, f"streamed {where} holds {bad[0]!r}")
    if said.words != whole.words and not said.wrong:
        again = ask(api.server, api.path, api.body(text, tools=tools))
        if isinstance(again, Said) and again.words == whole.words:
            yield Fault("stream-differs", api.path, _unlike(said, whole))
    if said.ended != whole.ended and said.words == whole.words and not said.wrong:
        what = f"streamed, it is {said.ended!r}; whole, {whole.ended!r}"
        yield Fault("finish-reason", api.path, what)


def _unlike(said: Said, whole: Said) -> str:
    pairs = zip(("content", "reasoning", "tool calls"), said.words, whole.words, strict=True)
    name, streamed, at_once = next((n, a, b) for n, a, b in pairs if a != b)
    return f"{name}: streamed {str(streamed)[:60]!r}, whole {str(at_once)[:60]!r}"


def _of_logprobs(api: Api) -> Iterator[Fault]:
    said = ask(
        api.server, api.path, api.body(HELLO, tokens=16) | {"logprobs": True, "top_logprobs": 5}
    )
    if isinstance(said, Answer):
        return  # some servers have none
    for entry in said.logprobs:
        chosen = entry.get("logprob") if isinstance(entry, dict) else None
        top = entry.get("top_logprobs") if isinstance(entry, dict) else None
        if not isinstance(chosen, (int, float)) or not isinstance(top, list):
            yield Fault("logprobs-wrong", api.path, f"an entry is {str(entry)[:80]}")
            return
        values: list[Any] = [one.get("logprob") for one in top if isinstance(one, dict)]
        if not all(isinstance(v, (int, float)) and v <= 1e-3 for v in [*values, chosen]):
            yield Fault("logprobs-wrong", api.path, f"log-probabilities {values}: above zero")
            return
        total = sum(math.exp(value) for value in values)
        if total > 1 + 1e-3:
            yield Fault("logprobs-wrong", api.path, f"the likeliest tokens sum to {total:.3f}")
            return
        best = max(values, default=chosen)
        if values and chosen > best + 1e-3:
            yield Fault(
                "logprobs-wrong", api.path, "the chosen token is likelier than the likeliest"
            )
            return
