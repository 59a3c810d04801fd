"""`gptoss-ref chat [MESSAGE]`: one answer, or a prompt loop that keeps the history."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gptoss_ref.chat import Chat, Message, Reply, SystemContent, Tool, tools_from_data
from gptoss_ref.chat.messages import is_call, place_of
from gptoss_ref.chat.parser import Event, MessageEnd, Repair, TextDelta
from gptoss_ref.cli.compiling import Behind
from gptoss_ref.cli.console import Screen, notes, output
from gptoss_ref.cli.sources import load_model
from gptoss_ref.errors import GptOssError, HarmonyError
from gptoss_ref.generation import check_parameters


def run(args: argparse.Namespace) -> int:
    """Answers MESSAGE, or every line of the input until end of file."""
    if args.message is not None and not args.message.strip():
        raise HarmonyError("MESSAGE is empty: expected a text")
    date = _date(args.date)
    system = SystemContent(reasoning_effort=args.reasoning, conversation_start_date=date)
    tools = read_tools(args.tools)
    if args.max_tokens < 1:
        raise GptOssError(f"--max-tokens is {args.max_tokens}: expected 1 or more")
    check_parameters(args.max_tokens, args.temperature, args.top_k, args.top_p, args.seed)
    model = load_model(args)
    chat = Chat(
        model,
        instructions=args.instructions,
        tools=tools,
        max_new_tokens=args.max_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
    )
    chat.messages = [Message.system(system)]
    talk = Talk(chat, as_json=args.json, may_compile=args.backend == "auto")
    if args.message is not None:
        talk.send(args.message)
    else:
        talk.loop()
    return 0


class Talk:
    """A conversation at the terminal, or in a pipe.

    Args:
        chat: the conversation, which keeps the history.
        as_json: print one JSON object per answer instead of its text.
        may_compile: whether to compile missing kernels during a conversation at a terminal.
    """

    def __init__(self, chat: Chat, *, as_json: bool, may_compile: bool = False) -> None:
        self.chat = chat
        self.as_json = as_json
        self.may_compile = may_compile
        self.interactive = sys.stdin.isatty()

    def send(self, message: str | Sequence[Message]) -> Reply:
        """Sends a message and shows the answer as it comes."""
        show = Transcript(output(), notes())
        for event in self.chat.send(message):
            if isinstance(event, Reply):
                reply = event
            elif not self.as_json:
                show(event)
        if self.as_json:
            output().line(json.dumps(reply.to_dict(), ensure_ascii=False))
        elif reply.stop_reason == "length":
            notes().line(f"(cut off after {len(reply.tokens)} tokens)", dim=True)
        elif reply.stop_reason == "other_role":
            notes().line("(stopped: the model began a message of another role)", dim=True)
        return reply

    def loop(self) -> None:
        """Asks for messages until end of file. Ctrl-C cancels the current message."""
        if self.interactive:
            with contextlib.suppress(ImportError):  # not on every system
                import readline  # noqa: F401  # gives input() line editing
        behind = Behind(self.chat) if self.may_compile and self.interactive else None
        try:
            self._messages(behind)
        finally:
            if behind is not None:
                behind.stop()

    def _messages(self, behind: Behind | None) -> None:
        while True:
            try:
                message = self._ask("> ")
                if behind is not None:
                    behind.take_over()
                if message.strip():
                    self._turn(message)
            except EOFError:
                if self.interactive:
                    notes().line()
                return
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                notes().line("\n(interrupted; the message is not in the history)", dim=True)
            except GptOssError as error:
                if not self.interactive:
                    raise
                notes().line(f"error: {error}")

    def _turn(self, message: str) -> None:
        """Sends one message; the user types the results of tool calls."""
        before = self.chat.messages
        try:
            reply = self.send(message)
            while reply.tool_calls:
                reply = self.send(
                    [
                        call.answer(self._ask(f"result of {call.recipient}: "))
                        for call in reply.tool_calls
                    ]
                )
        except BaseException:
            self.chat.messages = before
            raise

    def _ask(self, prompt: str) -> str:
        """A line from standard input; the prompt is shown on a terminal only."""
        return input(prompt if self.interactive else "")


class Transcript:
    """Shows a stream of events: analysis dimmed, answers plain, tool calls with their arguments.

    On a terminal everything goes to one screen. In a pipe only the answer goes to stdout, and the
    analysis to stderr (docs/decisions/0006).
    """

    def __init__(self, results: Screen, asides: Screen) -> None:
        self._results = results
        self._asides = results if results.is_terminal else asides

    def __call__(self, event: Event) -> None:
        """Shows one event."""
        if isinstance(event, TextDelta):
            message = event.header.message("")
            if not is_call(message):
                aside = _is_aside(message)
                (self._asides if aside else self._results).write(event.text, dim=aside)
        elif isinstance(event, MessageEnd):
            message = event.message
            if is_call(message):
                self._results.write(f"{message.recipient}({message.text})")
            (self._asides if _is_aside(message) else self._results).line()
        elif isinstance(event, Repair) and event.text:
            self._asides.line(f"({event})", dim=True)


def _is_aside(message: Message) -> bool:
    """Whether a message is not part of the answer: analysis, or a message of another role."""
    thought = place_of(message) == "analysis" and not is_call(message)
    return thought or message.role != "assistant"


def _date(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise HarmonyError(f"--date is {text!r}: expected YYYY-MM-DD") from None


def read_tools(file: str | None) -> tuple[Tool, ...]:
    """Function tools from a JSON file: a list of them, or one."""
    if file is None:
        return ()
    try:
        return tools_from_data(json.loads(Path(file).read_bytes()))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HarmonyError(f"{file}: not JSON: {error}") from None
    except HarmonyError as error:
        raise HarmonyError(f"{file}: {error}") from None
