"""A stand-in for a model that says what a script says, to test what is around the model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from gptoss_ref.backend import NUMPY
from gptoss_ref.chat import o200k_harmony
from gptoss_ref.errors import TokenError
from gptoss_ref.numerics import FLOAT64

VOCABULARY = 201_088
INTERRUPT = "\N{SYMBOL FOR CANCEL}"
"""In a script: Ctrl-C arrives here."""


@dataclasses.dataclass
class Tokens:
    """What stands in for the cache: how many tokens it has seen."""

    length: int = 0


class ScriptedModel:
    """It answers each prompt with the next text of the script, whatever it is asked.

    Args:
        script: what it says, in Harmony, special tokens spelt out; a text for each prompt.
        seconds: how long each token takes.
        context: how many positions it has.
    """

    def __init__(self, *script: str, seconds: float = 0.0, context: int = 131_072) -> None:
        self.tokenizer = o200k_harmony()
        self.config = SimpleNamespace(max_position_embeddings=context)
        self.stop_tokens = self.tokenizer.stop_tokens
        self.backend, self.policy = NUMPY, FLOAT64
        self.seconds = seconds
        self.prompts: list[str] = []
        self._script = iter(script)
        self._tokens: Iterator[int | None] = iter(())

    def _of(self, text: str) -> Iterator[int | None]:
        for index, part in enumerate(text.split(INTERRUPT)):
            if index:
                yield None
            yield from self.tokenizer.encoding.encode(part, allowed_special="all")

    def new_cache(self) -> Tokens:
        return Tokens()

    def __call__(self, tokens: Iterable[int], cache: Tokens, *, last_only: bool) -> Any:
        assert last_only
        given = list(tokens)
        if cache.length + len(given) > self.config.max_position_embeddings:
            raise TokenError("the context is full")
        if len(given) > 1:
            self.prompts.append(self.tokenizer.decode(given))
            self._tokens = self._of(next(self._script))
        time.sleep(self.seconds)
        token = next(self._tokens)
        if token is None:
            raise KeyboardInterrupt
        cache.length += len(given)
        logits = np.zeros((1, VOCABULARY))
        logits[0, token] = 9
        return logits
