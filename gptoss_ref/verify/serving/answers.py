"""Parse a server's answers into one form for both APIs, streamed or not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gptoss_ref.errors import EndpointError
from gptoss_ref.verify.observe.adapters.transport import Answer, fetch
from gptoss_ref.verify.rendering.server import Server

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


@dataclass
class Call:
    """A tool call, with the fields that the answer has."""

    id: Any = None
    name: Any = None
    arguments: Any = ""


@dataclass
class Said:
    """One answer.

    Attributes:
        content, reasoning: the texts.
        calls: the tool calls.
        ended: ``finish_reason``, or the status of a response.
        usage: counts of tokens, under the server's names.
        deltas: the pieces of the texts in the order of the stream.
        wrong: errors in the form of the answer.
        logprobs: the entries of the answer's tokens.
    """

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    ended: Any = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    deltas: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)

    @property
    def words(self) -> tuple[str, str, list[tuple[Any, Any]]]:
        """Texts and calls without ids, which must be the same in a stream."""
        return self.content, self.reasoning, [(c.name, c.arguments) for c in self.calls]


def ask(server: Server, path: str, body: dict[str, Any]) -> Said | Answer:
    """One answer; an Answer if the server refuses."""
    answer = server.ask(path, server.named(body))
    if not answer.ok:
        return answer
    return of_chat(answer.value) if path == CHAT else of_response(answer.value)


def _reasoning(message: Mapping[str, Any]) -> str:
    for key in ("reasoning_content", "reasoning"):
        if isinstance(message.get(key), str):
            return str(message[key])
    return ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def of_chat(value: Any) -> Said:
    """A chat completion."""
    said = Said(usage=_mapping(_mapping(value).get("usage")))
    choices = _list(_mapping(value).get("choices"))
    if not choices or not isinstance(choices[0], Mapping):
        said.wrong.append("the answer has no choices")
        return said
    choice = choices[0]
    message = _mapping(choice.get("message"))
    if message.get("role") != "assistant":
        said.wrong.append(f"the message has the role {message.get('role')!r}")
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        said.wrong.append(f"content is {type(content).__name__}, expected text or null")
    said.content = content if isinstance(content, str) else ""
    said.reasoning = _reasoning(message)
    said.ended = choice.get("finish_reason")
    for call in _list(message.get("tool_calls")):
        function = _mapping(_mapping(call).get("function"))
        said.calls.append(
            Call(_mapping(call).get("id"), function.get("name"), function.get("arguments"))
        )
        if _mapping(call).get("type") != "function":
            said.wrong.append("a tool call lacks the type function")
    said.logprobs = _list(_mapping(choice.get("logprobs")).get("content"))
    return said


def of_response(value: Any) -> Said:
    """A response."""
    value = _mapping(value)
    said = Said(usage=_mapping(value.get("usage")), ended=value.get("status"))
    if value.get("object") != "response":
        said.wrong.append(f"object is {value.get('object')!r}, expected 'response'")
    if not isinstance(value.get("output"), list):
        said.wrong.append("the response has no output")
    for item in map(_mapping, _list(value.get("output"))):
        kind = item.get("type")
        if kind == "message":
            for part in map(_mapping, _list(item.get("content"))):
                said.content += str(part.get("text", ""))
        elif kind == "reasoning":
            parts = _list(item.get("content")) or _list(item.get("summary"))
            said.reasoning += "".join(str(_mapping(part).get("text", "")) for part in parts)
        elif kind == "function_call":
            said.calls.append(Call(item.get("call_id"), item.get("name"), item.get("arguments")))
        elif not isinstance(kind, str):
            said.wrong.append("an item of the output has no type")
    if said.ended == "incomplete" and not _mapping(value.get("incomplete_details")).get("reason"):
        said.wrong.append("an incomplete response does not say why")
    return said


def ask_streamed(server: Server, path: str, body: dict[str, Any]) -> Said | Answer:
    """One streamed answer; an Answer if the server refuses.

    Raises:
        EndpointError: the answer is not a stream of events.
    """
    url = server.url + path
    status, content = fetch(
        url,
        server.named({**body, "stream": True}),
        timeout=server.timeout,
        api_key=server.api_key,
    )
    if not 200 <= status < 300:
        return Answer(status, None, content.decode("utf-8", "replace"))
    try:
        text = content.decode()
    except UnicodeDecodeError:
        said = of_chat_stream([]) if path == CHAT else of_response_stream([])
        said.wrong = ["the stream is not UTF-8: a character was cut"]
        return said
    events: list[Any] = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        data = [line[5:].strip() for line in block.split("\n") if line.startswith("data:")]
        if not data:
            continue
        if data == ["[DONE]"]:
            events.append("[DONE]")
            continue
        try:
            events.append(json.loads("\n".join(data)))
        except (ValueError, RecursionError):
            raise EndpointError(
                f"{url}: an event of the stream is not JSON: {data[0][:60]!r}"
            ) from None
    if not events:
        raise EndpointError(f"{url}: no events in the stream: {' '.join(text[:60].split())!r}")
    return of_chat_stream(events) if path == CHAT else of_response_stream(events)


def of_chat_stream(events: list[Any]) -> Said:
    """A chat completion, joined from its chunks."""
    said, ends = Said(), 0
    if not events or events[-1] != "[DONE]":
        said.wrong.append("the stream does not end with [DONE]")
    for event in map(_mapping, events):
        said.usage = _mapping(event.get("usage")) or said.usage
        for choice in map(_mapping, _list(event.get("choices"))[:1]):
            delta = _mapping(choice.get("delta"))
            if ends and (delta.get("content") or _reasoning(delta)):
                said.wrong.append("text comes after the finish_reason")
            for text, key in ((delta.get("content"), "content"), (_reasoning(delta), "reasoning")):
                if isinstance(text, str) and text:
                    setattr(said, key, getattr(said, key) + text)
                    said.deltas.append(text)
            for call in map(_mapping, _list(delta.get("tool_calls"))):
                _add_call(said, call)
            if choice.get("finish_reason") is not None:
                said.ended, ends = choice["finish_reason"], ends + 1
    if ends != 1 and events:
        said.wrong.append(f"the stream has {ends} finish_reasons, expected one")
    return said


def _add_call(said: Said, call: Mapping[str, Any]) -> None:
    """Add a piece of a tool call to the call with its index."""
    index = call.get("index", len(said.calls))
    if not isinstance(index, int) or not 0 <= index <= len(said.calls):
        said.wrong.append(f"a piece of a tool call has the index {index!r}")
        return
    if index == len(said.calls):
        said.calls.append(Call())
    function, known = _mapping(call.get("function")), said.calls[index]
    known.id = known.id or call.get("id")
    known.name = known.name or function.get("name")
    known.arguments += str(function.get("arguments") or "")


def of_response_stream(events: list[Any]) -> Said:
    """A response, joined from its events."""
    said, last = Said(), None
    content = reasoning = ""
    numbers = []
    for event in map(_mapping, events):
        kind = str(event.get("type"))
        numbers.append(event.get("sequence_number"))
        delta = event.get("delta")
        if isinstance(delta, str) and kind == "response.output_text.delta":
            content += delta
            said.deltas.append(delta)
        elif isinstance(delta, str) and kind.startswith("response.reasoning"):
            reasoning += delta
            said.deltas.append(delta)
        elif kind in ("response.completed", "response.incomplete", "response.failed"):
            last = event.get("response")
    given = [number for number in numbers if number is not None]
    if given and given != sorted(set(given)):
        said.wrong.append("the sequence numbers of the events do not rise")
    if last is None:
        said.wrong.append("the stream does not end with response.completed")
        said.content, said.reasoning = content, reasoning
        return said
    whole = of_response(last)
    whole.deltas = said.deltas
    whole.wrong = [*said.wrong, *whole.wrong]
    if content != whole.content:
        whole.wrong.append("the deltas of the text are not the text of the response")
    return whole
