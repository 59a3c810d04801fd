"""Token labels for figures: visible characters that the font has, right-to-left text in order."""

from __future__ import annotations

import unicodedata
from itertools import groupby
from typing import TYPE_CHECKING, Any

from gptoss_ref.errors import TokenError

if TYPE_CHECKING:
    from gptoss_ref.chat.tokenizer import Tokenizer
    from gptoss_ref.config import ModelConfig
    from gptoss_ref.model import Model
    from gptoss_ref.tracing.trace import Trace

_SHOWN = {" ": "␣", "\n": "↵", "\t": "⇥"}
LEFT_TO_RIGHT = "\u200e"  # sets the direction of a label, whatever its first letter
NAMES_UP_TO = 32
"""Up to this number of tokens, every token on an axis has a label; else some, with positions."""


def token_labels(trace: Trace, tokenizer: Tokenizer | None = None, limit: int = 14) -> list[str]:
    """One label per token of the trace: its text, or its id if there is no tokenizer."""
    return labels_of(trace.tokens, known_tokenizer(trace, tokenizer), limit)


def known_tokenizer(trace: Trace, tokenizer: Tokenizer | None = None) -> Tokenizer | None:
    """The given tokenizer, else that of the trace's model, else o200k_harmony if it fits."""
    return tokenizer or tokenizer_for(trace.config, trace.model)


def tokenizer_for(config: ModelConfig, model: Model | None) -> Tokenizer | None:
    """The model's tokenizer, else o200k_harmony if it fits, else None."""
    if model is not None:
        try:
            return model.tokenizer
        except TokenError:
            pass  # weights alone, or a folder without a tokenizer
    from gptoss_ref.chat.tokenizer import LAST_SPECIAL, o200k_harmony

    return o200k_harmony() if config.vocab_size == LAST_SPECIAL + 1 else None


def labels_of(tokens: Any, tokenizer: Tokenizer | None, limit: int = 14) -> list[str]:
    """One label per token id."""
    found = []
    for token in map(int, tokens):
        try:
            raw = str(token).encode() if tokenizer is None else tokenizer.token_bytes(token)
        except TokenError:  # an id without a token
            raw = str(token).encode()
        found.append(label(raw, limit))
    return found


def label(raw: bytes, limit: int = 14) -> str:
    """A token's bytes as text that DejaVu Sans, matplotlib's default font, can draw.

    Spaces, line ends and tabs are shown as symbols; other control characters, invalid UTF-8 and
    characters without a glyph (emoji, Chinese) as codes. Long labels are shortened.
    """
    import matplotlib

    text = "".join(_shown(c) for c in raw.decode("utf-8", "backslashreplace"))
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if not any(map(_is_rtl, text)):
        return text.replace("$", r"\$")  # else matplotlib reads a formula
    if matplotlib.__version_info__ < (3, 11):  # draws characters from left to right
        text = _in_visual_order(text)
    return LEFT_TO_RIGHT + text.replace("$", r"\$")


def _shown(c: str) -> str:
    if c in _SHOWN:
        return _SHOWN[c]
    if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp"):
        return f"\\x{ord(c):02x}" if ord(c) < 256 else f"U+{ord(c):04X}"
    return c if _has_glyph(c) else f"U+{ord(c):04X}"


def _has_glyph(c: str) -> bool:
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return bool(font.get_char_index(ord(c)))


def _is_rtl(c: str) -> bool:
    return unicodedata.bidirectional(c) in ("R", "AL")


def _in_visual_order(text: str) -> str:
    """The text with reversed runs of right-to-left letters; marks stay after their letters."""
    out = []
    for backwards, run in groupby(text, lambda c: _is_rtl(c) or bool(unicodedata.combining(c))):
        clusters: list[str] = []
        for c in run:
            if unicodedata.combining(c) and clusters:
                clusters[-1] += c
            else:
                clusters.append(c)
        out.append("".join(reversed(clusters) if backwards else clusters))
    return "".join(out)


def set_token_ticks(axis: Any, labels: list[str], pooled: int = 1) -> None:
    """Label the tokens of a matplotlib axis: all if they are few, else some with their positions.

    Args:
        pooled: tokens per cell of the map.
    """
    count = len(labels)
    if count <= NAMES_UP_TO:
        step, names = 1, labels
    else:
        step = next(s for b in range(9) for s in (10**b, 2 * 10**b, 5 * 10**b) if count <= 24 * s)
        names = [f"{i} {labels[i]}" for i in range(0, count, step)]
    axis.set_ticks([i / pooled for i in range(0, count, step)], labels=names, fontsize=7)
