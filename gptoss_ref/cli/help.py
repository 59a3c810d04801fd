"""Help texts of the command line: examples, defaults, and suggestions after a typo."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable

EXAMPLES = {
    "chat": (
        'gptoss-ref chat "What is 27 + 58?" --reasoning high',
        "gptoss-ref chat --model ~/gpt-oss-20b --tools tools.json",
    ),
    "generate": (
        'gptoss-ref generate "The capital of France is" --max-tokens 8',
        'gptoss-ref generate "Once" --temperature 1 --top-p 0.9 --seed 7 --json',
    ),
    "info": ("gptoss-ref info 20b", "gptoss-ref info ~/gpt-oss-20b --json"),
    "convert": (
        "gptoss-ref convert tiny tiny-bfloat16 --experts bfloat16",
        "gptoss-ref convert ~/gpt-oss-20b/original 20b-hf --layout hf",
    ),
    "selfcheck": (
        "gptoss-ref selfcheck ~/gpt-oss-20b",
        "gptoss-ref selfcheck openai/gpt-oss-20b --policy bfloat16 --json",
    ),
    "vectors": (
        "gptoss-ref vectors suite",
        "gptoss-ref vectors --check my-results --precision bfloat16",
    ),
    "check": ("gptoss-ref check", "gptoss-ref check mine.py:swiglu swiglu"),
    "warmup": ("gptoss-ref warmup", "gptoss-ref warmup --width 2880 --json"),
    "doctor": ("gptoss-ref doctor", "gptoss-ref doctor --megabytes 4096 --json"),
    "trace": (
        'gptoss-ref trace tiny --prompt "What is 27 + 58?" -o ours.trace --policy float64',
        "gptoss-ref trace tiny --tokens 17,4,250 --taps 'block.0.*' -o block0.trace",
    ),
    "compare": (
        "gptoss-ref compare ours.trace theirs.npz --model tiny",
        "gptoss-ref compare ours.trace theirs.safetensors --rounding bfloat16 --html report.html",
    ),
    "tokens": (
        'gptoss-ref tokens "What is 27 + 58?"',
        'gptoss-ref tokens "What is 27 + 58?" --chat --json',
    ),
    "diagnose": (
        "gptoss-ref diagnose tiny theirs.npz --tokens 17,4,250 --names names.json",
        'gptoss-ref diagnose tiny --endpoint http://localhost:8080 --prompt "What is 27 + 58?"',
    ),
    "inspect": (
        'gptoss-ref inspect tiny "What is 27 + 58?" -o page.html',
        'gptoss-ref inspect tiny "What is 27 + 58?" --reasoning high --generate 64 -o page.html',
    ),
    "train": (
        "gptoss-ref train tiny data.jsonl -o adapter --steps 200 --held-out test.jsonl",
        "gptoss-ref train tiny data.jsonl -o adapter --steps 200 --resume",
    ),
    "harmony": (
        "gptoss-ref harmony render conversation.json --ids",
        "gptoss-ref harmony check --template chat_template.jinja",
    ),
    "harmony render": (
        "gptoss-ref harmony render conversation.json --ids",
        "gptoss-ref harmony render conversation.json --training",
    ),
    "harmony parse": (
        "gptoss-ref harmony parse reply.txt --role assistant",
        "gptoss-ref harmony parse - --strict --json",
    ),
    "harmony diff": (
        "gptoss-ref harmony diff ours.txt theirs.txt",
        "gptoss-ref harmony diff ours.json theirs.json --json",
    ),
    "harmony check": (
        "gptoss-ref harmony check --template chat_template.jinja",
        "gptoss-ref harmony check --server http://localhost:8080 --live",
    ),
}
"""Two command lines of each command and verb, shown by its ``--help``."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows the default of each option, unless its help text already mentions it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        shown = action.default not in (None, "", argparse.SUPPRESS) and not isinstance(
            action.default, bool
        )
        if shown and action.nargs != 0 and "default" not in text:
            text += " (default: %(default)s)"
        return text


def examples(command: str) -> str | None:
    """The epilog of a command's help."""
    lines = EXAMPLES.get(command)
    return lines and "\n".join(["examples:", *(f"  {line}" for line in lines)])


OTHER_NAMES = {
    "--rounding": "--policy",
    "--dtype": "--policy",
    "--precision": "--policy",
    "--system": "--instructions",
    "--effort": "--reasoning",
    "--max-new-tokens": "--max-tokens",
    "--out": "--output",
    "--lr": "--rate",
    "--learning-rate": "--rate",
    "--batch-size": "--batch",
}
"""Names of options in other programs or commands, and the option that is meant."""


def nearest(word: str, words: Iterable[str]) -> str:
    """``: did you mean …?``, or nothing if no word is similar."""
    known = list(words)
    meant = OTHER_NAMES.get(word, "")
    near = [meant] if meant in known else difflib.get_close_matches(word, known, 1)
    return f": did you mean {near[0]}?" if near else ""


def plainer(message: str) -> str:
    """argparse's message in plain words, with the nearest choice after a typo."""
    missing = re.fullmatch(r"the following arguments are required: (.+)", message)
    if missing is not None:
        return f"missing: {missing[1]}"
    found = re.fullmatch(r"argument (.+): invalid choice: '(.*)' \(choose from (.*)\)", message)
    if found is None:
        return message.replace("unrecognized arguments:", "unexpected:")
    argument, given, listed = found.groups()
    choices = [choice.strip("' ") for choice in listed.split(",")]
    kind = "command" if argument == "COMMAND" else argument
    hint = nearest(given, choices) or f": expected one of {', '.join(choices)}"
    return f"unknown {kind} {given!r}{hint}"
