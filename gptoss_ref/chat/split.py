"""The split patterns of BPE tokenizers, and long runs of spaces that they cannot handle.

A tokenizer splits text with a regular expression and merges byte pairs within each piece. tiktoken
runs that expression with a backtracking engine, whose stack overflows (a Rust panic, not a Python
exception) on a run of a million spaces. `long_spaces` finds such runs for the patterns below, for
which the pieces of a run are known, so that the tokenizer can encode the run without the
expression. All other texts cost time linear in their length (merging: n log n for one piece of n
bytes, since tiktoken 0.13).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Source: tiktoken, tiktoken_ext/openai_public.py, o200k_base: words with the character before them,
# numbers of one to three digits, punctuation with a space before it, newlines, spaces.
_UPPER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_LOWER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _o200k(digits: str) -> str:
    return "|".join(
        [
            rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CONTRACTION}?",
            rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CONTRACTION}?",
            digits,
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            _SPACES,
        ]
    )


def _cl100k(digits: str) -> str:
    return (
        rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
    )


O200K_PATTERN = _o200k(r"\p{N}{1,3}")

_DIGITS = (r"\p{N}{1,3}", r"\p{N}{1,2}", r"\p{N}")
SAFE_PATTERNS = frozenset(make(digits) for make in (_o200k, _cl100k) for digits in _DIGITS)
"""The patterns that are known to take linear time: those of o200k_base (gpt-oss) and of cl100k_base
as tokenizer.json files write it (Llama 3; Qwen with one digit), with numbers of 1, 2 or 3 digits.
"""

LONG = 1000
"""A run of more spaces than this is encoded without the regular expression."""

# The characters of \s in tiktoken's engine (Unicode White_Space) without the newlines. Python's \s
# has U+001C to U+001F too.
_SPACE = "[\t\v\f \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_LONG_SPACE = re.compile(rf"(?<!{_SPACE}){_SPACE}{{{LONG},}}+(?![\r\n])")


def long_spaces(text: str) -> Iterator[tuple[int, int]]:
    r"""Begin and end of the pieces of at least `LONG` - 1 spaces, under the patterns above.

    A run of spaces begins a piece, because no alternative of a pattern continues over a space
    (`_SPACES` continues from a newline only to another newline, and none follows). Before another
    character the piece ends one space early, by `\s+(?!\S)`; at the end of the text it does not.

    >>> [(begin, end) for begin, end in long_spaces("a\n" + " " * 5000 + "b")]
    [(2, 5001)]
    """
    for run in _LONG_SPACE.finditer(text):
        begin, end = run.span()
        yield begin, end if end == len(text) else end - 1
