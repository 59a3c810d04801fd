"""A server of a scripted model on loopback, correct or with one fault.

It renders with the rules of this package, or those of one bug (`bug`), and answers questions from a
script; `fault` is a law of :data:`gptoss_ref.verify.serving.LAWS` that it breaks in each API, with
a form of it after a colon; `failing` makes it fail as servers do.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gptoss_ref.chat import o200k_harmony
from gptoss_ref.verify.rendering.catalogue import rendering_bug
from gptoss_ref.verify.rendering.conversation import conversation_from_data
from gptoss_ref.verify.rendering.pieces import from_text, text_of, to_ids
from gptoss_ref.verify.rendering.rules import SPECIFICATION, Rules
from tests.support import loopback

FAULTS = (
    "answer-form",
    "answer-form:done",
    "stop-token-shown",
    "stop-token-shown:streamed",
    "channel-in-content",
    "channel-in-content:words",
    "reasoning-in-content",
    "tool-call-form:id",
    "tool-call-form:name",
    "tool-call-form:arguments",
    "finish-reason",
    "finish-reason:none",
    "limit-ignored",
    "usage-wrong",
    "result-refused",
    "stream-differs",
    "stream-differs:tools",
    "character-cut",
    "character-cut:bytes",
    "empty-content-fails",
    "long-text-fails",
    "bad-request-fails",
    "logprobs-wrong",
    "logprobs-wrong:sum",
    "logprobs-wrong:chosen",
)
FAILING = ("silent", "redirecting", "html", "gigabyte", "half-json", "lying", "half-characters")
WAYS = ("llama.cpp", "vllm", "echo", "echo-logprobs", "none")


@dataclass
class Script:
    """How the server behaves."""

    fault: str = ""
    failing: str = ""
    way: str = "llama.cpp"
    rules: Rules = SPECIFICATION

    def breaks(self, law: str, form: str = "") -> bool:
        return self.fault == (f"{law}:{form}" if form else law)


class Server(loopback.Server):
    script: Script


@contextlib.contextmanager
def serving(
    *, fault: str = "", failing: str = "", way: str = "llama.cpp", bug: str = "", variant: str = ""
) -> Iterator[Server]:
    """A running server; it is down when the block ends."""
    rules = rendering_bug(bug).apply(variant=variant) if bug else SPECIFICATION
    server = Server(Handler)
    server.script = Script(fault, failing, way, rules)
    with loopback.running(server):
        yield server


class Handler(loopback.Handler):
    server: Server

    @property
    def script(self) -> Script:
        return self.server.script

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.reply({"data": [{"id": "scripted"}]})
        else:
            self.reply({"error": {"message": "no such page"}}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.script.failing:
            self.fail(self.script.failing)
            return
        pages = {
            "/apply-template": self.apply_template,
            "/tokenize": self.tokenize,
            "/v1/chat/completions": self.chat,
            "/v1/responses": self.respond,
        }
        page = pages.get(self.path)
        if page is None:
            self.reply({"error": {"message": "no such page"}}, 404)
            return
        page(body)

    def fail(self, how: str) -> None:
        if how == "silent":
            self.server.closing.wait(20)
        elif how == "redirecting":
            self.redirect()
        elif how == "html":
            self.send(b"<html>Welcome</html>")
        elif how == "gigabyte":
            self.send(b"{", length=1 << 30)
        elif how == "half-json":
            self.send(b'{"prompt": "<|start|>sys')
        elif how == "lying":
            self.reply({"prompt": 7, "tokens": ["a", None]})
        elif how == "half-characters":
            self.send(b'{"prompt": "<|start|>user<|message|>\\ud83d<|end|>", "tokens": [17, -4]}')

    # --- rendering --------------------------------------------------------------------------------

    def rendered(self, body: dict[str, Any]) -> tuple[str, list[int]]:
        options = body.get("chat_template_kwargs", {})
        data = {
            "messages": body["messages"],
            "tools": body.get("tools"),
            "format": "chat",
            **{k: v for k, v in options.items() if k != "builtin_tools"},
        }
        pieces = self.script.rules.render(conversation_from_data(data).on("2026-02-03"))
        return text_of(pieces), to_ids(pieces, o200k_harmony())

    def apply_template(self, body: dict[str, Any]) -> None:
        if self.script.way != "llama.cpp":
            self.reply({"detail": "Not Found"}, 404)
            return
        self.reply({"prompt": self.rendered(body)[0]})

    def tokenize(self, body: dict[str, Any]) -> None:
        if self.script.way == "llama.cpp" and "content" in body:
            ids = to_ids(from_text(body["content"]), o200k_harmony())
            self.reply({"tokens": ids})
        elif self.script.way == "vllm" and "messages" in body:
            ids = self.rendered(body)[1]
            self.reply({"tokens": ids, "count": len(ids)})
        else:
            self.reply({"detail": "Not Found"}, 404)

    # --- answers ----------------------------------------------------------------------------------

    def refused(self, body: dict[str, Any], texts: list[Any]) -> bool:
        """Whether the request was answered with an error."""
        breaks = self.script.breaks
        if not all(isinstance(text, (str, list, type(None))) for text in texts):
            status = 500 if breaks("bad-request-fails") else 400
            self.reply({"error": {"message": "content must be text"}}, status)
        elif "" in texts and breaks("empty-content-fails"):
            self.reply({"error": {"message": "division by zero"}}, 500)
        elif any(isinstance(t, str) and len(t) > 9999 for t in texts):
            status = 500 if breaks("long-text-fails") else 400
            self.reply({"error": {"message": "longer than the context"}}, status)
        else:
            return False
        return True

    def chat(self, body: dict[str, Any]) -> None:
        if self.refused(body, [message.get("content") for message in body["messages"]]):
            return
        answered = body["messages"][-1]["role"] == "tool"
        if answered and self.script.breaks("result-refused"):
            self.reply({"error": {"message": "unknown role tool"}}, 400)
            return
        said = scripted(self.script, body["messages"][-1], bool(body.get("tools")), answered)
        limited = body.get("max_tokens", 99) <= 16
        ended = "tool_calls" if said["calls"] else "length" if limited else "stop"
        if self.script.breaks("finish-reason") and said["calls"]:
            ended = "stop"
        if self.script.breaks("finish-reason", "none"):
            ended = None  # type: ignore[assignment]
        usage = self.usage(body.get("max_tokens", 99), "prompt", "completion")
        if body.get("stream"):
            self.send(chat_stream(self.script, said, ended).encode("utf-8", "surrogateescape"))
            return
        message: dict[str, Any] = {"role": "assistant", "content": said["content"]}
        if said["reasoning"]:
            message["reasoning_content"] = said["reasoning"]
        if said["calls"]:
            message["tool_calls"] = [
                {"id": i, "type": "function", "function": {"name": n, "arguments": a}}
                for i, n, a in said["calls"]
            ]
        if self.script.breaks("answer-form"):
            message["role"] = "bot"
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": ended}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": logprobs(self.script)}
        value: dict[str, Any] = {"choices": [choice], "usage": usage}
        if self.script.way == "echo":
            value["prompt_token_ids"] = self.rendered(body)[1]
        if self.script.way == "echo-logprobs":
            ids = self.rendered(body)[1]
            rows = [{str(i): {"logprob": -1.0}, "1": {"logprob": -0.5}} for i in ids[1:]]
            value["prompt_logprobs"] = [None, *rows]
        self.reply(value)

    def usage(self, limit: int, asked: str, made: str) -> dict[str, int]:
        count = min(limit, 20)
        if self.script.breaks("limit-ignored"):
            count = 200
        total = 10 + count + (5 if self.script.breaks("usage-wrong") else 0)
        return {f"{asked}_tokens": 10, f"{made}_tokens": count, "total_tokens": total}

    def respond(self, body: dict[str, Any]) -> None:
        items = body["input"]
        items = [{"role": "user", "content": items}] if isinstance(items, str) else items
        if self.refused(body, [item.get("content") for item in items]):
            return
        answered = items[-1].get("type") == "function_call_output"
        if answered and self.script.breaks("result-refused"):
            self.reply({"error": {"message": "unknown item"}}, 400)
            return
        said = scripted(self.script, items[-1], bool(body.get("tools")), answered)
        limit = body.get("max_output_tokens", 99)
        status = "incomplete" if limit <= 16 else "completed"
        if self.script.fault.startswith("finish-reason"):
            status = "stop"
        output: list[dict[str, Any]] = []
        if said["reasoning"]:
            part = {"type": "reasoning_text", "text": said["reasoning"]}
            output.append({"type": "reasoning", "content": [part]})
        if said["content"]:
            part = {"type": "output_text", "text": said["content"]}
            output.append({"type": "message", "role": "assistant", "content": [part]})
        output += [
            {"type": "function_call", "call_id": i, "name": n, "arguments": a}
            for i, n, a in said["calls"]
        ]
        response = {
            "object": "chat" if self.script.breaks("answer-form") else "response",
            "status": status,
            "output": output,
            "usage": self.usage(limit, "input", "output"),
        }
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        if body.get("stream"):
            text = response_stream(self.script, said, response)
            self.send(text.encode("utf-8", "surrogateescape"))
        else:
            self.reply(response)


def scripted(script: Script, last: Any, tools: bool, answered: bool) -> dict[str, Any]:
    """What the model says."""
    said: dict[str, Any] = {"content": "Hé 🎈 hello", "reasoning": "They greet.", "calls": []}
    if tools and not answered:
        call: list[Any] = ["call_7", "add", '{"a": 27, "b": 58}']
        if script.breaks("tool-call-form", "id"):
            call[0] = None
        if script.breaks("tool-call-form", "name"):
            call[1] = "functions.add"
        if script.breaks("tool-call-form", "arguments"):
            call[2] = {"a": 27, "b": 58}
        said |= {"content": None, "calls": [call]}
        return said
    if script.breaks("stop-token-shown"):
        said["content"] += "<|return|>"
    if script.breaks("channel-in-content"):
        said["content"] = "<|channel|>final<|message|>hello"
    if script.breaks("channel-in-content", "words"):
        said["content"] = "analysisThey greet.assistantfinalhello"
    if script.breaks("reasoning-in-content"):
        said["content"] = "They greet.\n\nhello"
    return said


def pieces(script: Script, text: str | None) -> list[str]:
    """A text in pieces of one character, some of them cut."""
    out: list[str] = []
    for character in text or "":
        if character == "🎈" and script.breaks("character-cut"):
            out += ["\ufffd", "\ufffd"]
        elif character == "🎈" and script.breaks("character-cut", "bytes"):
            out += ["\udcf0\udc9f"]
        else:
            out.append(character)
    if script.breaks("stream-differs") and out:
        del out[-1]
    if script.breaks("stop-token-shown", "streamed") and out:
        out.append("<|return|>")
    return out


def chat_stream(script: Script, said: dict[str, Any], ended: str | None) -> str:
    """Server-sent events."""
    chunks: list[dict[str, Any]] = []
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": piece} for piece in said["reasoning"]]
    deltas += [{"content": piece} for piece in pieces(script, said["content"])]
    for i, name, arguments in said["calls"]:
        if script.breaks("stream-differs", "tools"):
            arguments = "{}"
        function: dict[str, Any] = {"name": name, "arguments": ""}
        deltas.append({"tool_calls": [{"index": 0, "id": i, "function": function}]})
        for piece in arguments if isinstance(arguments, str) else ["{}"]:
            deltas.append({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
    chunks += [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({"choices": [{"delta": {}, "finish_reason": ended}]})
    lines = [f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks]
    return "".join(lines) + ("" if script.breaks("answer-form", "done") else "data: [DONE]\n\n")


def response_stream(script: Script, said: dict[str, Any], response: dict[str, Any]) -> str:
    """Server-sent events of a response."""
    events: list[dict[str, Any]] = [{"type": "response.created"}]
    deltas = pieces(script, said["content"])
    events += [{"type": "response.output_text.delta", "delta": piece} for piece in deltas]
    if script.breaks("stream-differs", "tools"):
        calls = [i for i in response["output"] if i["type"] != "function_call"]
        response = {**response, "output": calls}
    if not script.breaks("answer-form", "done"):
        kind = "incomplete" if response["status"] == "incomplete" else "completed"
        events.append({"type": f"response.{kind}", "response": response})
    return "".join(
        f"event: {event['type']}\n"
        f"data: {json.dumps({**event, 'sequence_number': n}, ensure_ascii=False)}\n\n"
        for n, event in enumerate(events)
    )


def logprobs(script: Script) -> list[dict[str, Any]]:
    """One entry with five likeliest tokens."""
    values = [-0.5, -1.5, -2.5, -3.5, -4.5]
    chosen = values[0]
    if script.breaks("logprobs-wrong"):
        values = [0.5, *values[1:]]
    if script.breaks("logprobs-wrong", "sum"):
        values = [-0.1] * 5
        chosen = -0.1
    if script.breaks("logprobs-wrong", "chosen"):
        chosen = -0.1
    top = [{"token": chr(97 + n), "logprob": value} for n, value in enumerate(values)]
    return [{"token": "a", "logprob": chosen, "top_logprobs": top}]
