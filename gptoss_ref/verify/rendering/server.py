"""Check how a server renders conversations, by its prompts alone.

It tries in this order: ``/apply-template`` and ``/tokenize`` of llama.cpp; ``/tokenize`` with
messages, as in vLLM and SGLang; ``/v1/chat/completions`` with the token ids or the
log-probabilities of the prompt in the answer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlunsplit

from gptoss_ref.chat.tokenizer import Tokenizer, o200k_harmony
from gptoss_ref.errors import EndpointError, HarmonyError, TokenError
from gptoss_ref.verify.observe.adapters.transport import Answer, address, request
from gptoss_ref.verify.rendering.check import case_of
from gptoss_ref.verify.rendering.conversation import Conversation
from gptoss_ref.verify.rendering.conversations import check_conversations
from gptoss_ref.verify.rendering.explain import Case
from gptoss_ref.verify.rendering.pieces import Mark
from gptoss_ref.verify.rendering.report import RenderingReport, judge

Rendered = str | list[int]

START = 200006
"""The id of ``<|start|>`` in the released tokenizer."""

_HINT = " (a model with another vocabulary needs --tokenizer FOLDER)"


class Server:
    """Requests to one server.

    Args:
        url: with or without ``/v1`` at its end.
        model: the model's name on the server; None takes the first one that it lists.
        timeout: seconds for each answer.
        api_key: sent as a bearer token.

    Raises:
        EndpointError: the address is invalid, or there is no server.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        timeout: float = 60.0,
        api_key: str | None = None,
    ) -> None:
        parts = address(url if "//" in url else f"http://{url}")
        path = parts.path.rstrip("/")
        for end in ("/chat/completions", "/completions", "/responses", "/v1"):
            path = path.removesuffix(end)
        self.url = urlunsplit((parts.scheme, parts.netloc, path, "", ""))
        self.timeout, self.api_key = timeout, api_key
        self.model = model or self._listed()

    def _listed(self) -> str | None:
        try:
            name = self.ask("/v1/models").value["data"][0]["id"]
        except (LookupError, TypeError):
            return None
        return name if isinstance(name, str) else None

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Answer:
        """One answer. EndpointError if there is none, or it is a redirect or forbidden."""
        answer = request(self.url + path, body, timeout=self.timeout, api_key=self.api_key)
        if 300 <= answer.status < 400:
            raise EndpointError(f"{self.url}{path}: redirects elsewhere (HTTP {answer.status})")
        if answer.status in (401, 403):
            raise EndpointError(f"{self.url}{path}: {answer.complaint()}")
        return answer

    def named(self, body: dict[str, Any]) -> dict[str, Any]:
        """A request's body with the model's name."""
        return body if self.model is None else {"model": self.model, **body}


def check_server(
    url: str,
    conversations: Sequence[Conversation] | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    model: str | None = None,
    timeout: float = 60.0,
    api_key: str | None = None,
) -> RenderingReport:
    """Find the bugs in a server's renderings of conversations.

    Args:
        url: of the server, with or without ``/v1``.
        conversations: the conversations; None: those of this package, without built-in tools.
        tokenizer: of its ids; None: that of the released models.
        model: the model's name on the server; None takes the first one that it lists.
        timeout: seconds for each answer.
        api_key: sent as a bearer token.

    Raises:
        EndpointError: the server is down, too slow, redirects, gives an invalid answer, or has no
            known way to show its prompts.
        HarmonyError: a conversation is in Harmony's format instead of that of chat APIs.
    """
    with_ = tokenizer or o200k_harmony()
    if conversations is None:
        conversations = [one for one in check_conversations() if "builtin_tools" not in one.chat]  # type: ignore[operator]
    server = Server(url, model=model, timeout=timeout, api_key=api_key)
    way, words = _way(server, body_of(conversations[0]))
    cases: list[Case] = []
    refused = []
    notes = [words]
    for conversation in conversations:
        answer = way(server, body_of(conversation))
        if isinstance(answer, Answer):
            refused.append((conversation.title, answer.complaint()))
            continue
        try:
            case, more = case_of(conversation.undated(), answer, with_=with_)
        except TokenError as error:
            raise EndpointError(f"{server.url}: {error}{_HINT * (tokenizer is None)}") from None
        cases.append(case)
        notes += more
    if not cases:
        raise EndpointError(f"{server.url} renders none of the conversations: {refused[0][1]}")
    if tokenizer is None and not any(Mark("start") in case.observed for case in cases):
        notes.append(f"No prompt has the token <|start|>{_HINT}")
    return judge(cases, refused, notes)


def body_of(conversation: Conversation) -> dict[str, Any]:
    """The conversation as a request.

    Raises:
        HarmonyError: the conversation is in Harmony's format.
    """
    if conversation.chat is None:
        raise HarmonyError(
            f"{conversation.title}: is in Harmony's format; expected the format of chat APIs"
        )
    chat = copy.deepcopy(dict(conversation.chat))
    body: dict[str, Any] = {"messages": chat["messages"]}
    if chat.get("tools"):
        body["tools"] = chat["tools"]
    keys = ("reasoning_effort", "model_identity", "builtin_tools")
    options = {key: chat[key] for key in keys if key in chat}
    if options:
        body["chat_template_kwargs"] = options
    if "reasoning_effort" in chat:
        body["reasoning_effort"] = chat["reasoning_effort"]
    return body


Way = Callable[[Server, dict[str, Any]], Rendered | Answer]


def _way(server: Server, body: dict[str, Any]) -> tuple[Way, str]:
    """The way in which this server shows its prompts, with a note on it."""
    said = []
    for way, words in (
        (_apply_template, "The prompts come from /apply-template and /tokenize."),
        (_tokenize, "The prompts come from /tokenize with messages."),
        (_echo, "The prompts come from the answers of /v1/chat/completions."),
    ):
        answer = way(server, body)
        if not isinstance(answer, Answer):
            return way, words
        said.append(answer.complaint())
    raise EndpointError(
        f"{server.url} does not show its prompts: /apply-template: {said[0]}; /tokenize: "
        f"{said[1]}; chat completions: {said[2]}"
    )


def _apply_template(server: Server, body: dict[str, Any]) -> Rendered | Answer:
    """llama.cpp: the text, and its tokens if the server gives them."""
    answer = server.ask("/apply-template", body)
    if not answer.ok:
        return answer
    prompt = answer.value.get("prompt") if isinstance(answer.value, dict) else None
    if not isinstance(prompt, str):
        raise EndpointError(f"{server.url}/apply-template: expected a prompt, {_head(answer)}")
    tokens = server.ask(
        "/tokenize", {"content": prompt, "add_special": True, "parse_special": True}
    )
    if not tokens.ok:
        return prompt
    return _ids(server, "/tokenize", tokens)


def _tokenize(server: Server, body: dict[str, Any]) -> Rendered | Answer:
    """vLLM, SGLang: the ids."""
    answer = server.ask("/tokenize", server.named({**body, "add_generation_prompt": True}))
    if answer.ok and isinstance(answer.value, dict) and not answer.value.get("tokens"):
        return Answer(404, answer.value, "no tokens")  # llama.cpp, which expects a content
    return _ids(server, "/tokenize", answer) if answer.ok else answer


def _echo(server: Server, body: dict[str, Any]) -> Rendered | Answer:
    """Chat completions whose answer holds the prompt's ids."""
    asked = {"max_tokens": 1, "temperature": 0, "return_token_ids": True, "prompt_logprobs": 0}
    answer = server.ask("/v1/chat/completions", server.named(body | asked))
    if not answer.ok:
        return answer
    value = answer.value if isinstance(answer.value, dict) else {}
    ids = value.get("prompt_token_ids")
    if isinstance(ids, list):
        return _ids(server, "/v1/chat/completions", Answer(200, {"tokens": ids}, ""))
    rows = value.get("prompt_logprobs")
    if not isinstance(rows, list) or len(rows) < 2:
        return Answer(404, None, "the answer does not contain the prompt's tokens")
    found = []
    for row in rows[1:]:
        if not isinstance(row, dict) or not row or not all(map(str.isdecimal, row)):
            raise EndpointError(f"{server.url}: prompt_logprobs: expected tokens by id")
        found.append(int(next(iter(row))))  # the prompt's token comes first
    # the first token has no log-probability; it is assumed to be <|start|>
    return [START, *found]


def _ids(server: Server, path: str, answer: Answer) -> list[int]:
    tokens = answer.value.get("tokens") if isinstance(answer.value, dict) else None
    if isinstance(tokens, list) and tokens:
        ids: list[Any] = [t.get("id") if isinstance(t, dict) else t for t in tokens]
        if all(isinstance(t, int) and not isinstance(t, bool) for t in ids):
            return [int(t) for t in ids]
    raise EndpointError(f"{server.url}{path}: expected token ids, {_head(answer)}")


def _head(answer: Answer) -> str:
    return f"found {' '.join(answer.text.split())[:80]!r}"
