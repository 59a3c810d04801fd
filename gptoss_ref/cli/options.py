"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from gptoss_ref.cli.help import nearest, plainer
from gptoss_ref.errors import GptOssError

MODEL_HELP = (
    "'tiny' (the bundled model), 'released-constants' or 'other-constants' (random weights), a "
    "folder, or a Hub id in the local Hugging Face cache"
)


class UsageError(GptOssError):
    """An invalid command line."""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports an invalid command line in one line, as a UsageError."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{plainer(message)} (see {self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse; an unknown option is an error that suggests the nearest one."""
        if self._subparsers is None:
            known = self._option_string_actions
            for word in itertools.takewhile(lambda word: word != "--", args or ()):
                name = word.split("=")[0]
                if name.startswith("--") and not any(o.startswith(name) for o in known):
                    self.error(f"unknown option {name}{nearest(name, known)}")
        return super().parse_known_args(args, namespace)


def add_prompt_options(command: Parser, prompt: Any, purpose: str) -> None:
    prompt.add_argument("--prompt", metavar="TEXT", help=purpose)
    prompt.add_argument(
        "--tokens",
        type=token_ids,
        metavar="IDS",
        help="token ids such as 17,4,250, or @FILE with token ids",
    )
    command.add_argument(
        "--chat", action="store_true", help="--prompt is the user's message in a Harmony chat"
    )


def add_model_options(command: Parser) -> None:
    command.add_argument("--model", default="tiny", metavar="MODEL", help=MODEL_HELP)
    add_download_option(command)
    add_backend_options(command)


def add_download_option(command: Parser) -> None:
    command.add_argument(
        "--download", action="store_true", help="download a Hub id into the cache (extra: hub)"
    )


def add_backend_options(command: Parser) -> None:
    command.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="numba (compiled kernels), numpy (the specification), or auto: numba, but numpy for a "
        "small model while its kernels are not compiled",
    )
    command.add_argument(
        "--policy",
        default="float32",
        metavar="NAME",
        help="rounding of the computation: float64, float32 or bfloat16",
    )


def add_sampling_options(command: Parser, *, max_tokens: int) -> None:
    add_choice_options(command)
    command.add_argument(
        "--max-tokens", type=int, default=max_tokens, metavar="N", help="most tokens to generate"
    )


def add_choice_options(command: Parser) -> None:
    add = command.add_argument
    add("--temperature", type=float, default=0.0, metavar="T", help="of sampling; 0: greedy")
    add("--top-k", type=int, default=0, metavar="K", help="sample from the K likeliest; 0: all")
    add("--top-p", type=float, default=1.0, metavar="P", help="probability to keep; 1: all")
    add("--seed", type=seed, default=0, metavar="N", help="seed of the sampling")


def add_json_option(command: Parser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON object")


def file_name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected the name of a file, not ''")
    return text


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option: an integer of ``least`` or more."""

    def integer(text: str) -> int:
        if not whole(text) or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"expected an integer of {least} or more, not {text!r}"
            )
        return int(text)

    return integer


megabytes = at_least(64)  # kernels.doctor.LEAST_MEGABYTES, not imported here
seed, width = at_least(0), at_least(1)


def seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86400:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, not {text!r}")
    return seconds


def token_ids(text: str) -> list[int]:
    """Token ids from a list such as 17,4,250 or [17, 4, 250], or from @FILE with such a list."""
    listed = text
    if text.startswith("@"):
        try:
            listed = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise argparse.ArgumentTypeError(f"{text[1:]}: {reason}") from None
    ids = listed.translate(str.maketrans(",[]", "   ")).split()
    if not ids or not all(map(whole, ids)):
        raise argparse.ArgumentTypeError(f"expected token ids such as 17,4,250, not {text!r}")
    return [int(part) for part in ids]


def ranges(text: str) -> list[int]:
    """Integers from ranges such as 0-9,12,-1."""
    numbers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,9})-(\d{1,9})|(-?\d{1,9})", part.strip())
        if found is None or (found[1] and int(found[2]) < int(found[1])):
            raise argparse.ArgumentTypeError(f"expected numbers such as 0-9,12, not {text!r}")
        begin, end = (found[1], found[2]) if found[1] else (found[3], found[3])
        if int(end) - int(begin) > 10**6:
            raise argparse.ArgumentTypeError(f"expected a range of at most a million, not {part!r}")
        numbers += range(int(begin), int(end) + 1)
    return numbers


def whole(text: str) -> bool:
    """Whether it is an unsigned integer of at most 4300 digits, Python's limit."""
    return text.isdecimal() and len(text) <= 4300
