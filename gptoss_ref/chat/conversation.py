"""Talk with a model: one answer (`respond`, `stream`), or a conversation (`Chat`)."""

from __future__ import annotations

import reprlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gptoss_ref.chat.messages import DeveloperContent, Message, SystemContent
from gptoss_ref.chat.parser import Event
from gptoss_ref.chat.render import render_conversation
from gptoss_ref.chat.reply import Collector, Reply
from gptoss_ref.chat.tool_data import tool_from_dict
from gptoss_ref.chat.tools import Tool
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
        instructions: for the developer message, which is left out if it would be empty.
        tools: functions, as Tool or as plain data (see tool_data.tool_from_dict).

    Raises:
        HarmonyError: there is nothing to answer; or `message` already has a system or developer
            message, and an argument is given for it.
    """
    if isinstance(message, str):
        message = [Message.user(message)]
    messages = [message] if isinstance(message, Message) else list(message)
    for part in messages:
        if not isinstance(part, Message):
            raise HarmonyError(
                f"message {reprlib.repr(part)}: expected a Message (Message.from_dict makes one "
                "from plain data)"
            )
    if not any(part.parts and part.parts != ("",) for part in messages):
        raise HarmonyError("nothing to answer: expected a text, or at least one message")
    functions = [tool if isinstance(tool, Tool) else tool_from_dict(tool) for tool in tools]
    if messages[0].role != "system":
        messages.insert(0, Message.system(SystemContent(reasoning_effort=reasoning or "medium")))
    elif reasoning is not None:
        raise HarmonyError("both reasoning and a system message are given: expected one of them")
    if instructions is not None or functions:
        if any(part.role == "developer" for part in messages):
            raise HarmonyError(
                "both a developer message and instructions or tools are given: expected one of them"
            )
        content = DeveloperContent.with_functions(instructions, functions)
        messages.insert(1, Message.developer(content))
    return messages


class PrefixCache:
    """A key/value cache that is kept between answers, with the tokens that it holds.

    A prompt that begins with those tokens reuses the cache. Any other prompt starts with an empty
    cache, because windowed layers keep only their window and cannot go back. A prompt that drops
    the analysis of an earlier answer is such a prompt, so the cache helps turns without analysis,
    and tool calls.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self.tokens: list[int] = []
        self.cache: KVCache = model.new_cache()

    def restart(self) -> None:
        """Empty the cache, for instance because the model's backend has changed."""
        self.tokens, self.cache = [], self._model.new_cache()

    def begin(self, prompt: Sequence[int]) -> list[int]:
        """The tokens of the prompt that are not in the cache, at least one."""
        held = len(self.tokens)
        if held >= len(prompt) or list(prompt[:held]) != self.tokens:
            self.restart()
            return list(prompt)
        return list(prompt[held:])

    def end(self, tokens: Sequence[int]) -> None:
        """Record that the cache holds the first `cache.length` of these tokens."""
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
    stop_at_other_roles: bool = True,
) -> Iterator[Event | Reply]:
    """Answer: yield the parser's events as they come, and the Reply as the last item.

    The first arguments are those of `build_conversation`, the following ones those of `generate`.
    The history is rendered by the rule "answered" of `render.drop_analysis`. Generation ends at
    return, call or endoftext.

    Args:
        prefix: a cache that later calls can reuse.
        stop_at_other_roles: end the answer if the model begins a message of the user, the system,
            the developer or a tool; a Repair reports it. Otherwise generation goes on, and messages
            of these roles are in the events and in the Reply's messages and repairs, but not in its
            texts.

    Raises:
        HarmonyError: an invalid conversation, see `build_conversation`.
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
    # the last token is never fed to the model, so its position may be one beyond the context
    room = model.config.max_position_embeddings - len(prompt) + 1
    stops = {
        tokenizer.special[f"<|{name}|>"]: name
        for name in ("return", "call", "endoftext")
        if f"<|{name}|>" in tokenizer.special
    }
    collector = Collector(tokenizer, stop_at_other_roles=stop_at_other_roles)
    tokens: list[int] = []
    logprobs: list[float] = []
    first = None
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
            yield from collector.feed(token)
            if collector.stopped:
                break
    finally:
        prefix.end([*prompt, *tokens])
    yield from collector.finish()
    ended = time.perf_counter()
    stop_reason = stops.get(tokens[-1], "length") if tokens else "length"
    yield Reply(
        **collector.fields(),
        tokens=tuple(tokens),
        logprobs=tuple(logprobs),
        prompt_tokens=len(prompt),
        cached_tokens=len(prompt) - len(pending),
        first_seconds=(first or ended) - began,
        seconds=ended - began,
        stop_reason="other_role" if collector.stopped else stop_reason,
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
    stop_at_other_roles: bool = True,
    on_event: Callable[[Event], None] | None = None,
) -> Reply:
    """Answer a question or continue a conversation; see `stream` for the arguments.

    Args:
        on_event: called with each of the parser's events as it comes.

    Raises:
        HarmonyError: invalid messages, tools or effort.
        TokenError: the prompt does not fit the context.
        GptOssError: a sampling parameter out of range, or a model without a tokenizer.

    To return a tool's result, call it again with the messages so far, the reply's and the result:

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
        stop_at_other_roles=stop_at_other_roles,
    ):
        if isinstance(event, Reply):
            return event
        if on_event is not None:
            on_event(event)
    raise AssertionError("a stream ends with its reply")


class Chat:
    """A conversation that keeps its history.

        chat = Chat(model, reasoning="low")
        for event in chat.send("What is 27 + 58?"):
            ...                               # events as they come; the Reply last

    The arguments are those of `stream`. `messages` is the history with its analysis; rendering
    drops the analysis that the model must not see again. If an answer fails, or its events are not
    read to the end, the question is not added to the history.
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
        stop_at_other_roles: bool = True,
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
            "stop_at_other_roles": stop_at_other_roles,
        }

    def send(self, message: str | Message | Sequence[Message]) -> Iterator[Event | Reply]:
        """Send a message, or results of tools, and stream the answer, as `stream` does.

        Raises:
            HarmonyError: there is nothing to answer; also the errors of `stream`.
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
        """The Reply to a message, without its events; same errors as `send`."""
        for event in self.send(message):
            if isinstance(event, Reply):
                return event
        raise AssertionError("a stream ends with its reply")

    def reset(self) -> None:
        """Clear the history."""
        self.messages = []
