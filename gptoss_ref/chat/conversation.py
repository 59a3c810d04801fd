"""Talking with a model: one answer (`respond`, `stream`), or a conversation (`Chat`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gptoss_ref.chat.messages import DeveloperContent, Message, SystemContent
from gptoss_ref.chat.parser import Event, HarmonyParser, MessageEnd
from gptoss_ref.chat.render import render_conversation
from gptoss_ref.chat.reply import Reply, channel_text, tool_calls
from gptoss_ref.chat.tools import Tool, tool_from_dict
from gptoss_ref.errors import HarmonyError
from gptoss_ref.generation import generate

if TYPE_CHECKING:
    from gptoss_ref.cache import KVCache
    from gptoss_ref.model import Model

MAX_NEW_TOKENS = 1024


def build_conversation(
    message: str | Message | Sequence[Message],
    *,
    reasoning: str | None = None,
    instructions: str | None = None,
    tools: Sequence[Tool | Mapping[str, Any]] = (),
) -> list[Message]:
    """A conversation with its system and developer messages.

    Args:
        message: a question, or messages; those may begin with a system and a developer message.
        reasoning: "low", "medium" (the default) or "high", for the system message.
        instructions: for the developer message, which is there only if it has something to say.
        tools: functions, as Tool or as plain data (see tools.tool_from_dict).

    Raises:
        HarmonyError: there is nothing to answer, or `message` already has the message that an
            argument is for.
    """
    if isinstance(message, str):
        message = [Message.user(message)]
    messages = [message] if isinstance(message, Message) else list(message)
    if not any(part.parts and part.parts != ("",) for part in messages):
        raise HarmonyError("nothing to answer: expected a text, or at least one message")
    functions = [tool if isinstance(tool, Tool) else tool_from_dict(tool) for tool in tools]
    if messages[0].role != "system":
        messages.insert(0, Message.system(SystemContent(reasoning_effort=reasoning or "medium")))
    elif reasoning is not None:
        raise HarmonyError("reasoning is given, and so is a system message: expected one of them")
    if instructions is not None or functions:
        if any(part.role == "developer" for part in messages):
            raise HarmonyError(
                "instructions or tools are given, and so is a developer message: "
                "expected one of them"
            )
        content = DeveloperContent.with_functions(instructions, functions)
        messages.insert(1, Message.developer(content))
    return messages


class PrefixCache:
    """A key/value cache that remembers which tokens it holds, to be kept from answer to answer.

    It serves a prompt that begins with those tokens; for any other it starts anew, because windowed
    layers forget what is behind their window and cannot go back. Dropping the analysis of an
    earlier answer changes the prompt, so this helps turns without analysis, and tool calls.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self.tokens: list[int] = []
        self.cache: KVCache = model.new_cache()

    def restart(self) -> None:
        """Forget everything, as for a model that computes in another way from now on."""
        self.tokens, self.cache = [], self._model.new_cache()

    def begin(self, prompt: Sequence[int]) -> list[int]:
        """What remains to be computed of the prompt, at least one token."""
        held = len(self.tokens)
        if held >= len(prompt) or list(prompt[:held]) != self.tokens:
            self.restart()
            held = 0
        return list(prompt[held:])

    def end(self, tokens: Sequence[int]) -> None:
        """Note what the cache holds now: the beginning of these, as far as it was computed."""
        self.tokens = list(tokens[: self.cache.length])


def stream(
    model: Model,
    message: str | Message | Sequence[Message],
    *,
    reasoning: str | None = None,
    instructions: str | None = None,
    tools: Sequence[Tool | Mapping[str, Any]] = (),
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = 0,
    prefix: PrefixCache | None = None,
) -> Iterator[Event | Reply]:
    """Answer, yielding the parser's events as they come and, last of all, the Reply.

    The first arguments are those of `build_conversation`, the following ones those of `generate`;
    `prefix` lets a later call use what this one computed. The history is rendered by the rule
    "answered" of `render.drop_analysis`. Generation ends at return, call or endoftext.

    Raises:
        HarmonyError: a conversation that cannot be.
        TokenError: it exceeds the context.
        GptOssError: a sampling parameter out of range, or a model without a tokenizer.
    """
    began = time.perf_counter()
    messages = build_conversation(
        message, reasoning=reasoning, instructions=instructions, tools=tools
    )
    tokenizer = model.tokenizer
    prompt = render_conversation(messages, tokenizer, history="answered")
    prefix = PrefixCache(model) if prefix is None else prefix
    pending = prefix.begin(prompt)
    # the last token that is chosen is never computed, so it may lie one beyond the context
    room = model.config.max_position_embeddings - len(prompt) + 1
    stops = {
        tokenizer.special[f"<|{name}|>"]: name
        for name in ("return", "call", "endoftext")
        if f"<|{name}|>" in tokenizer.special
    }
    parser = HarmonyParser(tokenizer)
    tokens: list[int] = []
    logprobs: list[float] = []
    ends: list[MessageEnd] = []
    first = None

    def noted(events: list[Event]) -> list[Event]:
        ends.extend(event for event in events if isinstance(event, MessageEnd))
        return events

    try:
        for token in generate(
            model,
            pending,
            min(max_new_tokens, max(room, 1)),
            temperature,
            top_k,
            top_p,
            seed,
            stop_tokens=tuple(stops),
            cache=prefix.cache,
        ):
            first = first or time.perf_counter()
            tokens.append(int(token))
            logprobs.append(token.logprob)
            yield from noted(parser.feed(token))
    finally:
        prefix.end([*prompt, *tokens])
    yield from noted(parser.finish())
    ended = time.perf_counter()
    said = [end.message for end in ends]
    yield Reply(
        analysis=channel_text(said, "analysis"),
        commentary=channel_text(said, "commentary"),
        final=channel_text(said, "final"),
        tool_calls=tool_calls(ends),
        messages=tuple(said),
        tokens=tuple(tokens),
        logprobs=tuple(logprobs),
        prompt_tokens=len(prompt),
        cached_tokens=len(prompt) - len(pending),
        first_seconds=(first or ended) - began,
        seconds=ended - began,
        stop_reason=stops.get(tokens[-1], "length") if tokens else "length",
        repairs=tuple(parser.repairs),
    )


def respond(
    model: Model,
    message: str | Message | Sequence[Message],
    *,
    reasoning: str | None = None,
    instructions: str | None = None,
    tools: Sequence[Tool | Mapping[str, Any]] = (),
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = 0,
    prefix: PrefixCache | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Reply:
    """Answer a question or go on with a conversation; see `stream` for the arguments.

    Args:
        on_event: called with each of the parser's events as it comes.

    Raises:
        HarmonyError: messages, tools or an effort that cannot be.
        TokenError: the prompt does not fit the context.
        GptOssError: a sampling parameter out of range, or a model without a tokenizer.

    To hand a tool's result back, ask again with the messages so far, the reply's, and the result:

        reply = respond(model, messages, tools=tools)
        results = [call.answer(run(call)) for call in reply.tool_calls]
        reply = respond(model, [*messages, *reply.messages, *results], tools=tools)
    """
    for event in stream(
        model,
        message,
        reasoning=reasoning,
        instructions=instructions,
        tools=tools,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        prefix=prefix,
    ):
        if isinstance(event, Reply):
            return event
        if on_event is not None:
            on_event(event)
    raise AssertionError("a stream ends with its reply")


class Chat:
    """A conversation that remembers itself.

        chat = Chat(model, reasoning="low")
        for event in chat.send("What is 27 + 58?"):
            ...                               # events as they come; the Reply last

    The arguments are those of `stream`. `messages` is the history, analysis included; rendering it
    drops what the model is no longer to see. An answer that fails, or whose events are not read to
    the end, leaves the history as it was before the question.
    """

    def __init__(
        self,
        model: Model,
        *,
        reasoning: str | None = None,
        instructions: str | None = None,
        tools: Sequence[Tool | Mapping[str, Any]] = (),
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = 0,
    ) -> None:
        self.model = model
        self.messages: list[Message] = []
        self.prefix = PrefixCache(model)
        self._opening: dict[str, Any] = {
            "reasoning": reasoning,
            "instructions": instructions,
            "tools": tools,
        }
        self._sampling: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
        }

    def send(self, message: str | Message | Sequence[Message]) -> Iterator[Event | Reply]:
        """Say something, or hand in tools' results, and stream the answer, as `stream` does.

        Raises:
            HarmonyError: there is nothing to answer; and what `stream` raises.
        """
        if isinstance(message, str):
            message = Message.user(message)
        new = [message] if isinstance(message, Message) else list(message)
        if not any(part.text for part in new):
            raise HarmonyError("nothing to answer: expected a text, or at least one message")
        asked = [*self.messages, *new]
        for event in stream(
            self.model, asked, prefix=self.prefix, **self._opening, **self._sampling
        ):
            if isinstance(event, Reply):
                self.messages = [*asked, *event.messages]
            yield event

    def ask(self, message: str | Message | Sequence[Message]) -> Reply:
        """The answer to `send`, all at once; raises the same."""
        for event in self.send(message):
            if isinstance(event, Reply):
                return event
        raise AssertionError("a stream ends with its reply")

    def reset(self) -> None:
        """Forget the conversation."""
        self.messages = []
