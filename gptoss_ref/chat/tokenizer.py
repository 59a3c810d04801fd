"""Tokenizer: text to token ids and back.

`o200k_harmony` is the tokenizer of the released models: the 199,998 ranks of o200k_base, and 1,090
special tokens up to id 201087, with the names of openai-harmony 0.0.8. Common mistakes:

- Id 200018 has two public names: `<|endofprompt|>` (tiktoken, Hugging Face) and
  `<|reserved_200018|>` (openai-harmony). Both are mapped to it; it decodes to the second here,
  and to either in tiktoken itself.
- openai-harmony also names 201088, one past the last row of the embedding: out of range here.
- The *text* `<|end|>` is not the *token* `<|end|>`. `encode` returns ordinary tokens only; the
  renderer inserts special tokens by id.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from gptoss_ref.chat.pack_ranks import O200K_TOKENS, shipped_tokens
from gptoss_ref.chat.split import O200K_PATTERN, SAFE_PATTERNS, long_spaces
from gptoss_ref.errors import TokenError

if TYPE_CHECKING:
    import tiktoken

_NAMED = {
    199998: "startoftext",
    199999: "endoftext",
    200002: "return",
    200003: "constrain",
    200005: "channel",
    200006: "start",
    200007: "end",
    200008: "message",
    200012: "call",
}
_ALIASES = {"<|endofprompt|>": 200018}
LAST_SPECIAL = 201_087

#: The special tokens that Harmony needs; a tokenizer without one of them cannot be used for chat.
HARMONY_TOKENS = ("start", "end", "message", "channel", "constrain", "return", "call")


def harmony_specials(first: int = O200K_TOKENS, last: int = LAST_SPECIAL) -> dict[str, int]:
    """Name -> id of the special tokens 199998 to `last`, renumbered from `first`.

    A smaller vocabulary of N ranks keeps their order: id = N + (original id − 199998). The name of
    a reserved token keeps the original id.
    """
    moved = {
        f"<|{_NAMED.get(original, f'reserved_{original}')}|>": first + original - O200K_TOKENS
        for original in range(O200K_TOKENS, last + 1)
    }
    for alias, original in _ALIASES.items():
        if original <= last:
            moved[alias] = first + original - O200K_TOKENS
    return moved


class Tokenizer:
    """Byte-level BPE with special tokens.

    Args:
        tokens: the bytes of the ordinary tokens, in rank order: rank and id are the same number.
        special: name -> id of the special tokens, ids from len(tokens) on; two names may share an
            id.
        pattern: the regular expression that splits the text, in tiktoken's dialect. A pattern
            outside split.SAFE_PATTERNS may be very slow.
        name: its name in error messages.

    Raises:
        TokenError: a special token lies among the ranks, or the pattern does not compile.

    `vocab_size` is the largest id plus one. An id below it may have no token.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        special: Mapping[str, int],
        *,
        pattern: str = O200K_PATTERN,
        name: str = "tokenizer",
    ) -> None:
        clash = [text for text, number in special.items() if number < len(tokens)]
        if clash:
            raise TokenError(
                f"{name}: special token {clash[0]} has id {special[clash[0]]}, "
                f"expected at least {len(tokens)}, the number of ranks"
            )
        self.name = name
        self.pattern = pattern
        self.special: dict[str, int] = dict(special)
        self.tokens: tuple[bytes, ...] = tuple(tokens)
        self.vocab_size = max([len(tokens) - 1, *special.values()]) + 1
        tail: list[bytes | None] = [None] * (self.vocab_size - len(tokens))
        for text, number in special.items():
            # the first name of an id is the one that decodes; aliases come last in harmony_specials
            if tail[number - len(tokens)] is None:
                tail[number - len(tokens)] = text.encode()
        self._bytes: list[bytes | None] = [*tokens, *tail]
        self.encoding = self._tiktoken()

    def _tiktoken(self) -> tiktoken.Encoding:
        import tiktoken

        try:
            return tiktoken.Encoding(
                self.name,
                pat_str=self.pattern,
                mergeable_ranks={token: rank for rank, token in enumerate(self.tokens)},
                special_tokens=self.special,
            )
        except ValueError as error:
            raise TokenError(f"{self.name}: the split pattern does not compile: {error}") from None

    def __repr__(self) -> str:
        return f"<Tokenizer {self.name}: {len(self.tokens)} ranks, vocabulary {self.vocab_size}>"

    def encode(self, text: str) -> list[int]:
        """Ordinary token ids of the text, also for text that spells a special token.

        An unpaired surrogate, which UTF-8 cannot represent, becomes U+FFFD. With a pattern of
        split.SAFE_PATTERNS the time is linear in the length of any text.

        Raises TokenError if `text` is not a str, or if tiktoken fails on it (other patterns only).
        """
        if not isinstance(text, str):
            raise TokenError(f"{self.name}: cannot encode {type(text).__name__}, expected a str")
        tokens: list[int] = []
        at = 0
        for begin, end in long_spaces(text) if self.pattern in SAFE_PATTERNS else ():
            tokens += self._encode(text[at:begin])
            tokens += self.encoding._encode_single_piece(text[begin:end])
            at = end
        return tokens + self._encode(text[at:])

    def _encode(self, text: str) -> list[int]:
        try:
            return self.encoding.encode_ordinary(text)
        except BaseException as error:
            # pyo3 turns a Rust panic into a BaseException without a public class
            if type(error).__name__ != "PanicException":
                raise
            raise TokenError(
                f"{self.name}: tiktoken fails on a text of {len(text)} characters with this "
                f"tokenizer's split pattern: {error}"
            ) from None

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token (of a special token: its name). TokenError for an unknown id."""
        number = int(token)
        found = self._bytes[number] if 0 <= number < self.vocab_size else None
        if found is None:
            raise TokenError(
                f"token id {number}: no such token, expected an id from 0 to {self.vocab_size - 1} "
                f"that {self.name} defines"
            )
        return found

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """The concatenated bytes of the tokens. TokenError for an unknown id."""
        return b"".join(map(self.token_bytes, tokens))

    def decode(self, tokens: Iterable[int], errors: str = "replace") -> str:
        """The text of the tokens; `errors` as in bytes.decode. TokenError for an unknown id.

        An incomplete character becomes U+FFFD: to stream text, use HarmonyParser.
        """
        return self.decode_bytes(tokens).decode("utf-8", errors)

    def special_id(self, name: str) -> int:
        """The id of `<|name|>`. TokenError if this tokenizer has no such token."""
        try:
            return self.special[f"<|{name}|>"]
        except KeyError:
            raise TokenError(f"{self.name}: no special token <|{name}|>") from None

    def is_special(self, token: int) -> bool:
        """Whether the id is that of a special token."""
        return int(token) >= len(self.tokens)

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """The ids that end sampling: `<|return|>` ends an answer, `<|call|>` ends a tool call.

        `<|end|>` is not among them: it ends a message, and the next one follows.
        """
        return self.special_id("return"), self.special_id("call")


@functools.lru_cache(maxsize=1)
def o200k_harmony() -> Tokenizer:
    """The tokenizer of the released models, from the ranks in the package. Built once.

    Raises TokenError if the file of ranks is damaged.
    """
    return Tokenizer(shipped_tokens(), harmony_specials(), name="o200k_harmony")


def small_harmony(ranks: int, *, last: int = 200_018, pattern: str = O200K_PATTERN) -> Tokenizer:
    """The first `ranks` tokens of o200k_base and the Harmony specials 199998 to `last` after them.

    Any prefix of the ranks is a byte-pair vocabulary of its own, as long as it has all 256 bytes.

    Raises:
        TokenError: fewer than 256 ranks, or more than there are.
    """
    if not 256 <= ranks <= O200K_TOKENS:
        raise TokenError(f"ranks = {ranks}: expected 256 to {O200K_TOKENS}")
    return Tokenizer(
        shipped_tokens()[:ranks],
        harmony_specials(ranks, last),
        pattern=pattern,
        name=f"o200k_harmony[:{ranks}]",
    )
