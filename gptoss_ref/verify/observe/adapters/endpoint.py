"""Log-probabilities of one prompt from an OpenAI-compatible HTTP endpoint.

If the server echoes prompts (``echo`` with ``logprobs``: vLLM, llama-cpp-python, OpenAI's old
models), every position of the prompt is observed, otherwise only the generated tokens. The prompt
is sent as token ids if the server accepts them, else as text.

Known quirks: llama.cpp's own server accepts ``echo`` and ignores it (ggml-org/llama.cpp#27174);
llama-cpp-python gives each echoed token the log-probabilities of the next one
(abetlen/llama-cpp-python#1983), which is detected and corrected.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlunsplit

import numpy as np

from gptoss_ref.chat.tokenizer import Tokenizer
from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import EndpointError, TokenError
from gptoss_ref.numerics import Array
from gptoss_ref.verify.observe.adapters.completions import Entry, Reply, Texts, parse
from gptoss_ref.verify.observe.adapters.transport import Answer, address, request
from gptoss_ref.verify.observe.observation import LogprobObservation

Prompt = list[int] | str

TOP = 20
"""Number of likeliest tokens to ask for at each position: vLLM's default limit."""


def observe(
    url: str,
    tokens: Iterable[int] | Array,
    *,
    tokenizer: Tokenizer,
    config: ModelConfig,
    model: str | None = None,
    top: int = TOP,
    max_new_tokens: int = 16,
    timeout: float = 60.0,
    api_key: str | None = None,
) -> LogprobObservation:
    """The log-probabilities that a server gives for one prompt.

    Args:
        url: of the server, with or without ``/v1`` or ``/v1/completions``.
        tokens: (T,), the prompt.
        tokenizer: of the model; servers identify tokens by their text.
        config: of the model.
        model: the model's name on the server; None takes the first one that it lists.
        top: number of likeliest tokens to ask for at each position.
        max_new_tokens: number of tokens to generate if the server does not echo prompts.
        timeout: seconds for each answer.
        api_key: sent as a bearer token.

    Raises:
        EndpointError: the server is down, too slow, cut off, refuses, gives an invalid answer,
            tokenizes the prompt differently, or has no log-probabilities.
        TokenError: the prompt is empty or holds an unknown id.
    """
    ids = [int(token) for token in np.asarray(list(tokens)).ravel()]
    if not ids:
        raise TokenError("the prompt is empty: expected at least one token")
    text = tokenizer.decode(ids)
    server = _Server(url, model, timeout, api_key, top)
    texts = Texts(tokenizer, config.vocab_size)
    refusals: list[str] = []
    for prompt in (ids, text):
        answer = server.complete(prompt, echo=True, max_tokens=1)
        if answer.ok:
            reply = parse(answer.value, server.url)
            if len(reply.entries) >= len(ids):
                return _of_echo(server, prompt, ids, reply, texts, config)
        else:
            refusals.append(answer.complaint())
        answer = server.complete(prompt, echo=False, max_tokens=max_new_tokens)
        if answer.ok:
            reply = parse(answer.value, server.url)
            return _of_generated(server, ids, reply, texts, config)
        refusals.append(answer.complaint())
    raise EndpointError(f"{server.url} refuses the prompt: {refusals[-1]}")


class _Server:
    """Requests to one server about one model."""

    def __init__(
        self, url: str, model: str | None, timeout: float, api_key: str | None, top: int
    ) -> None:
        parts = address(url if "//" in url else f"http://{url}")
        path = parts.path.rstrip("/").removesuffix("/completions").removesuffix("/v1")
        base = urlunsplit((parts.scheme, parts.netloc, f"{path}/v1", "", ""))
        self.url, self.top = f"{base}/completions", top
        self._options: dict[str, Any] = {"timeout": timeout, "api_key": api_key}
        self.model = model or self._listed(f"{base}/models")

    def _listed(self, url: str) -> str | None:
        """The first model that the server lists; None if it lists none."""
        answer = request(url, **self._options)
        try:
            name = answer.value["data"][0]["id"]
        except (LookupError, TypeError):
            return None
        return name if isinstance(name, str) else None

    def complete(self, prompt: Prompt, *, echo: bool, max_tokens: int) -> Answer:
        """One greedy completion with log-probabilities; llama.cpp ignores a max_tokens of 0."""
        body = {
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "logprobs": self.top,
            "echo": echo,
        }
        if self.model is not None:
            body["model"] = self.model
        answer = request(self.url, body, **self._options)
        if answer.status in (401, 403, 404, 405) or 300 <= answer.status < 400:
            raise EndpointError(f"{self.url}: {answer.complaint()}")
        return answer

    @property
    def name(self) -> str:
        named = f"{self.url} {self.model}" if self.model else self.url
        return named.encode("utf-8", "backslashreplace").decode()  # JSON allows lone surrogates


def _of_echo(
    server: _Server,
    prompt: Prompt,
    ids: list[int],
    reply: Reply,
    texts: Texts,
    config: ModelConfig,
) -> LogprobObservation:
    """The observation from an echo: entry i is about token i, hence about position i − 1."""
    _check_prompt(server.url, ids, reply, texts)
    entries, left_out, late = reply.entries, [], 0
    if _is_late(server, prompt, ids, reply, texts):
        late = 1
        left_out.append(
            "the endpoint gives each echoed token the log-probabilities of the next one "
            "(llama-cpp-python#1983): they were shifted back"
        )
    found: dict[int, dict[int, float]] = {}
    unclear = 0
    for i, entry in enumerate(entries[: len(ids) + 1]):
        position = i - 1 + late
        if 0 <= position < len(ids):
            chosen = ids[i] if i < len(ids) else texts.likeliest(entry.chosen)
            found[position], lost = _numbers(entry, chosen, texts)
            unclear += lost
    return _observation(server, ids, found, config, left_out, unclear)


def _of_generated(
    server: _Server, ids: list[int], reply: Reply, texts: Texts, config: ModelConfig
) -> LogprobObservation:
    """The observation from generated tokens: entry i is about position T − 1 + i."""
    if reply.prompt_tokens is not None and reply.prompt_tokens != len(ids):
        raise EndpointError(
            f"{server.url} reads the prompt as {reply.prompt_tokens} tokens: expected {len(ids)}"
        )
    if not reply.entries and reply.completion_tokens == 0:
        raise EndpointError(
            f"{server.url} does not echo prompts, and the model generates nothing after this one: "
            "nothing to observe; try another prompt"
        )
    tokens, left_out = list(ids), []
    found: dict[int, dict[int, float]] = {}
    unclear = 0
    for entry in reply.entries:
        chosen = texts.likeliest(entry.chosen)
        found[len(tokens) - 1], lost = _numbers(entry, chosen, texts)
        unclear += lost
        if chosen is None:
            left_out.append(f"the text of new token {len(tokens) - len(ids)} fits several tokens")
            break
        tokens.append(chosen)
    left_out.insert(
        0,
        f"the endpoint does not echo prompts: only {len(found)} positions from {len(ids) - 1} on "
        "were observed",
    )
    return _observation(server, tokens, found, config, left_out, unclear)


def _observation(
    server: _Server,
    tokens: list[int],
    found: dict[int, dict[int, float]],
    config: ModelConfig,
    left_out: list[str],
    unclear: int,
) -> LogprobObservation:
    if not any(found.values()):
        raise EndpointError(
            f"{server.url} gives no log-probabilities: asked for {server.top} at each position"
        )
    if unclear:
        left_out.append(f"{unclear} log-probabilities whose text fits several tokens")
    return LogprobObservation(
        tokens,
        found,
        vocab_size=config.vocab_size,
        producer=server.name,
        left_out=left_out,
    )


def _numbers(entry: Entry, chosen: int | None, texts: Texts) -> tuple[dict[int, float], int]:
    """The log-probabilities of one position by id, and the number of those without a known id."""
    numbers: dict[int, float] = {}
    lost = 0
    for piece in entry.top:
        token = texts.id(piece)
        if piece.logprob is not None and token is not None:
            numbers[token] = piece.logprob
        elif piece.logprob is not None and not _same(piece.text, entry, chosen):
            lost += 1
    if chosen is not None and entry.chosen.logprob is not None:
        numbers[chosen] = entry.chosen.logprob
    return numbers, lost


def _same(text: str, entry: Entry, chosen: int | None) -> bool:
    """Whether an ambiguous text is that of the chosen token, whose id is known."""
    return chosen is not None and text == entry.chosen.text


def _check_prompt(url: str, ids: list[int], reply: Reply, texts: Texts) -> None:
    """EndpointError if the echoed tokens are not those that were sent, as far as texts show."""
    for i, (token, entry) in enumerate(zip(ids, reply.entries, strict=False)):
        theirs = texts.id(entry.chosen)
        if theirs is not None and theirs != token:
            raise EndpointError(
                f"{url} tokenizes the prompt differently: {entry.chosen.text!r} (token {theirs}) "
                f"at position {i}, expected token {token}"
            )


def _is_late(server: _Server, prompt: Prompt, ids: list[int], reply: Reply, texts: Texts) -> bool:
    """Whether entry i holds the log-probabilities of token i + 1.

    Such a server has no entry for the generated token. If so, the ranks of the tokens decide: in
    their own entries, or in the entries before them. If these are equal, the server's answer
    without echo decides.

    Raises:
        EndpointError: the answer does not decide it either.
    """
    if len(reply.entries) != len(ids):
        return False
    own, before = [], []
    for i, entry in enumerate(reply.entries[:-1]):
        numbers, _ = _numbers(entry, ids[i], texts)
        if len(numbers) > 1:
            own.append(_rank(numbers, ids[i]))
            before.append(_rank(numbers, ids[i + 1]))
    lead = float(np.mean(own) - np.mean(before)) if own else 0.0
    if abs(lead) > 0.1 * server.top:
        return lead > 0
    answer = server.complete(prompt, echo=False, max_tokens=1)
    after = parse(answer.value, server.url).entries if answer.ok else []
    if not after:
        raise EndpointError(
            f"{server.url} gives {len(ids)} log-probabilities for {len(ids)} tokens; it is unclear "
            "whether each belongs to its token or to the next one: try a prompt of ordinary text"
        )
    (expected, _), (last, _) = (_numbers(e, None, texts) for e in (after[0], reply.entries[-1]))
    return any(abs(last.get(t, -np.inf) - value) < 1e-3 for t, value in expected.items())


def _rank(numbers: dict[int, float], token: int) -> int:
    """Number of likelier tokens among the likeliest; all of them if the token is missing."""
    own = numbers.get(token, -np.inf)
    return sum(value > own for value in numbers.values())
