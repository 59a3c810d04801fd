"""Suggestions for an unknown array name, by its words and the array's shape."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from gptoss_ref.errors import TraceError
from gptoss_ref.tracing.taps import split
from gptoss_ref.verify.observe.adapters.layouts import fits, forms
from gptoss_ref.verify.observe.adapters.names import DIALECTS, Meaning, bare

SAME, ALIKE, MISSPELT = 0.8, 0.75, 0.9
"""Least similarity (share of common letters) of a suggested name: of the names as written, of their
words with synonyms replaced, and of a name that is suggested although its shape is another."""

_SYNONYMS = {
    "layer": "block",
    "layers": "block",
    "blocks": "block",
    "h": "block",
    "l": "block",
    "attention": "attn",
    "self": "",
    "model": "",
    "hook": "",
    "output": "out",
    "o": "out",
    "query": "q",
    "key": "k",
    "value": "v",
    "proj": "",
    "moe": "mlp",
    "ffn": "mlp",
    "feedforward": "mlp",
    "router": "router_logits",
    "gate": "router_logits",
    "emb": "embedding",
    "embed": "embedding",
    "resid": "residual",
}


class UnknownName(TraceError):
    """An unknown name of an array.

    Attributes:
        name: the name.
        suggested: names or tap points that it may mean, the likeliest first.
        by_shape: whether only the shape suggests them.
    """

    def __init__(self, name: str, suggested: list[str], by_shape: bool) -> None:
        self.name, self.suggested, self.by_shape = name, suggested, by_shape
        if not suggested:
            likely = (
                f"expected a tap point such as 'block.0.attn.q', or its name in "
                f"{', '.join(DIALECTS)}"
            )
        elif by_shape:
            likely = f"its shape is that of {', '.join(suggested)}"
        else:
            likely = f"did you mean {suggested[0]!r}?"
        super().__init__(f"unknown name {name!r}: {likely} {self.remedy()}")

    def remedy(self) -> str:
        """The Python argument that gives the name a meaning."""
        return f"(to map it yourself: names={{{self.name!r}: {self.example!r}}})"

    @property
    def example(self) -> str:
        """A tap point for the example in the message."""
        return self.suggested[0] if self.suggested else "block.0.attn.q"


def unknown_name(
    name: str,
    shape: tuple[int, ...],
    known: Mapping[str, tuple[Meaning, ...]],
    sizes: dict[str, int],
) -> UnknownName:
    """The error for a name that is not ``known``, with suggestions.

    Args:
        shape: of the array.
        known: from :func:`~gptoss_ref.verify.observe.adapters.names.lookup`.
        sizes: from :func:`~gptoss_ref.verify.observe.adapters.layouts.axis_sizes`.
    """
    words, numbers = _words(name)
    blocks = {block for ms in known.values() for m in ms if (block := split(m.tap)[0]) is not None}
    near = [
        (foreign, meanings[0].tap)
        for foreign, meanings in known.items()
        if not blocks.intersection(numbers[:1]) or split(meanings[0].tap)[0] in (None, numbers[0])
    ]
    tap_of = dict(near)
    fitting = [foreign for foreign, tap in near if foreign == tap and _fits(tap, shape, sizes)]
    close = difflib.get_close_matches(bare(name), [*tap_of], n=5, cutoff=SAME)
    usable = [foreign for foreign in close if tap_of[foreign] in fitting or not fitting]
    usable += difflib.get_close_matches(bare(name), close, n=1, cutoff=MISSPELT)
    if usable:
        return UnknownName(name, usable[:1], False)
    scored = [
        (difflib.SequenceMatcher(None, words, _words(foreign)[0]).ratio(), tap in fitting, tap)
        for foreign, tap in near
    ]
    score, _, tap = max(scored, key=lambda entry: entry[0] + 0.15 * entry[1])
    if score > ALIKE and (tap in fitting or not fitting):
        return UnknownName(name, [tap], False)
    if not numbers:  # one block stands for all
        fitting = [tap for tap in fitting if split(tap)[0] in (None, 0)]
    return UnknownName(name, fitting, True)


def _words(name: str) -> tuple[str, list[int]]:
    """The words of a name, with synonyms replaced, and its numbers."""
    parts = re.findall(r"[a-z]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    words = [_SYNONYMS.get(part, part) for part in parts if not part.isdecimal()]
    numbers = [int(part) for part in parts if part.isdecimal() and len(part) < 6]
    return " ".join(filter(None, words)), numbers


def _fits(tap: str, shape: tuple[int, ...], sizes: dict[str, int]) -> bool:
    inner = shape[1:] if shape[:1] == (1,) and len(shape) > 2 else shape
    return any(fits(inner, form, sizes) for form in forms(tap))
