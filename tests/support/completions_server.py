"""A completions server on loopback, as well or as badly behaved as a test wants it.

It answers from a function of tokens to logits, so that anything can be served: this package's
model, a mutant, or nothing sensible. How it answers is one of ``BEHAVIOURS``; the good ones write
log-probabilities as a known server does, the others fail as servers do.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.support import loopback

Logits = Callable[[list[int]], Any]
Request = dict[str, Any]

KNOWN = ("openai", "openai-text", "llama-cpp-python", "llama.cpp", "ending")
"""openai: echoes, takes ids and text. openai-text: text only. llama-cpp-python: text only, and each
echoed token gets what belongs to the next one. llama.cpp: ignores echo, writes ``content``.
ending: no echo, and the model stops at once."""

FAILING = (
    "silent",  # no answer; hangs up after 20 seconds
    "dripping",  # a byte now and then; hangs up after 20 seconds
    "closing",  # hangs up without an answer
    "cut-off",  # hangs up before the announced length
    "half-json",  # a whole answer that is half of one
    "html",  # success, but a page
    "error-page",  # status 500 and a page
    "refusing",  # status 400 and a reason
    "forbidding",  # status 401
    "redirecting",  # status 307
    "too-large",  # announces more than a client reads
    "no-choices",
    "no-logprobs",
    "strange-logprobs",
    "not-a-number",
    "raw-logits",
)


class Server(loopback.Server):
    """Serves one model; ``asked`` holds the bodies of all completion requests."""

    def __init__(self, logits: Logits, tokenizer: Any, behaviour: str) -> None:
        super().__init__(Handler)
        assert behaviour in (*KNOWN, *FAILING)
        self.logits, self.tokenizer, self.behaviour = logits, tokenizer, behaviour
        self.asked: list[Request] = []


def serving(
    logits: Logits, tokenizer: Any, behaviour: str = "openai"
) -> contextlib.AbstractContextManager[Server]:
    """A running server; it is down when the block ends."""
    return loopback.running(Server(logits, tokenizer, behaviour))


class Handler(loopback.Handler):
    server: Server

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.reply({"object": "list", "data": [{"id": "tiny", "object": "model"}]})
        else:
            self.reply({"error": {"message": f"no page {self.path}"}}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/completions":
            self.reply({"error": {"message": f"no page {self.path}"}}, 404)
            return
        self.server.asked.append(body)
        behaviour = self.server.behaviour
        if behaviour in KNOWN or behaviour in ("not-a-number", "raw-logits"):
            self.complete(body)
        else:
            getattr(self, "fail_" + behaviour.replace("-", "_"))()

    def complete(self, body: Request) -> None:
        prompt, behaviour = body["prompt"], self.server.behaviour
        if isinstance(prompt, str):
            prompt = tokenized(self.server.tokenizer, prompt)
        elif behaviour in ("openai-text", "llama-cpp-python"):
            self.reply({"detail": "prompt: expected a string"}, 422)
            return
        tokens, rows = greedy(self.server.logits, prompt, body["max_tokens"])
        if behaviour == "ending":  # a stop token is not counted among the generated ones
            tokens = tokens[: len(prompt)]
        if behaviour == "raw-logits":
            rows = [row + 100 for row in rows]
        if behaviour == "not-a-number":
            rows[-1] = np.full_like(rows[-1], np.nan)
        echo = body["echo"] and behaviour not in ("llama.cpp", "ending")
        places = entries(tokens, rows, 0 if echo else len(prompt), body["logprobs"])
        if echo and behaviour == "llama-cpp-python":  # row i instead of row i - 1 for token i
            places = entries(tokens, rows, 0, body["logprobs"], shift=0)
        write = content if behaviour == "llama.cpp" else legacy
        self.reply(
            {
                "choices": [
                    {"index": 0, "text": "", "logprobs": write(places, self.server.tokenizer)}
                ],
                "usage": {
                    "prompt_tokens": len(prompt),
                    "completion_tokens": len(tokens) - len(prompt),
                },
            }
        )

    def fail_silent(self) -> None:
        self.server.closing.wait(20)

    def fail_dripping(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(400):
                if self.server.closing.wait(0.05):
                    break
                self.wfile.write(b" ")
                self.wfile.flush()

    def fail_closing(self) -> None:
        self.close_connection = True

    def fail_cut_off(self) -> None:
        self.send(b'{"choices": [{"logprobs": {"tokens": ["a", ', length=5000)

    def fail_half_json(self) -> None:
        self.send(b'{"choices": [{"logprobs": {"tokens": ["a", ')

    def fail_html(self) -> None:
        self.send(b"<html><body>Welcome</body></html>")

    def fail_error_page(self) -> None:
        self.send(b"<html><body>Internal error</body></html>", 500)

    def fail_refusing(self) -> None:
        self.reply({"error": {"message": "the context holds 8 tokens"}}, 400)

    def fail_forbidding(self) -> None:
        self.reply({"error": {"message": "no key"}}, 401)

    def fail_redirecting(self) -> None:
        self.redirect()

    def fail_too_large(self) -> None:
        self.send(b"{}", length=1 << 40)

    def fail_no_choices(self) -> None:
        self.reply({"choices": []})

    def fail_no_logprobs(self) -> None:
        self.reply({"choices": [{"text": "a", "logprobs": None}]})

    def fail_strange_logprobs(self) -> None:
        self.reply(
            {"choices": [{"text": "a", "logprobs": {"tokens": [1], "token_logprobs": [-1]}}]}
        )


def tokenized(tokenizer: Any, text: str) -> list[int]:
    """Special tokens as such, the rest as text."""
    return list(tokenizer.encoding.encode(text, allowed_special="all"))


def greedy(logits: Logits, prompt: Sequence[int], count: int) -> tuple[list[int], list[Any]]:
    """The prompt with ``count`` tokens more, and the logits after each but the last of them."""
    tokens = list(prompt)
    for _ in range(count):
        rows = np.asarray(logits(tokens), np.float64)
        tokens.append(int(rows[-1].argmax()))
    return tokens, list(rows)


def entries(
    tokens: Sequence[int], rows: Sequence[Any], first: int, count: int, shift: int = 1
) -> list[tuple[int, dict[int, float] | None]]:
    """For each token from ``first`` on the ``count`` likeliest ones of its place, and its own."""
    found: list[tuple[int, dict[int, float] | None]] = []
    for i in range(first, len(tokens)):
        if not 0 <= i - shift < len(rows):
            if i - shift < 0:
                found.append((tokens[i], None))
            continue
        row = rows[i - shift]
        logprobs = row - row.max() - np.log(np.exp(row - row.max()).sum())
        if row.max() > 100:
            logprobs = row
        best = [int(t) for t in np.argsort(-logprobs, kind="stable")[:count]]
        found.append((tokens[i], {t: float(logprobs[t]) for t in [*best, tokens[i]]}))
    if first == 0 and found:
        found[0] = (tokens[0], None)
    return found


def legacy(places: Any, tokenizer: Any) -> dict[str, Any]:
    """OpenAI's completions: lists side by side, tokens by their text."""

    def text(token: int) -> str:
        return str(tokenizer.token_bytes(token).decode("utf-8", "replace"))

    return {
        "tokens": [text(token) for token, _ in places],
        "token_logprobs": [None if top is None else top[token] for token, top in places],
        "top_logprobs": [
            None if top is None else {text(t): value for t, value in top.items()}
            for _, top in places
        ],
        "text_offset": [0] * len(places),
    }


def content(places: Any, tokenizer: Any) -> dict[str, Any]:
    """llama.cpp's server: objects with ids and bytes."""

    def piece(token: int, value: float) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token)
        text = raw.decode("utf-8", "replace")
        return {"id": token, "token": text, "bytes": list(raw), "logprob": value}

    return {
        "content": [
            {
                **piece(token, top[token]),
                "top_logprobs": [piece(t, value) for t, value in top.items()],
            }
            for token, top in places
        ]
    }
