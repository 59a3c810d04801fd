"""Build the page: its data are one JSON object, and deflated arrays in base64."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import gptoss_ref
from gptoss_ref._files import replacing
from gptoss_ref.errors import GptOssError
from gptoss_ref.numerics import Array
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.viz.figure import need
from gptoss_ref.viz.inspector.conversation import messages, texts
from gptoss_ref.viz.inspector.recording import TAPS, Recording, Sparse
from gptoss_ref.viz.labels import known_tokenizer, tokenizer_for

if TYPE_CHECKING:
    from gptoss_ref.model import Model

LIMIT = 3_000_000
"""Largest size of a page in bytes."""

KEEP = (None, 64, 32, 16, 8, 4, 2)
"""Attention weights kept per row, tried in this order until the page fits; None: all."""

SHRINKS = 4
"""Upper bound of the compression ratio of deflate, which was measured as 2."""


def page(
    model: Model,
    source: Trace | Iterable[int],
    *,
    name: str | None = None,
    token: int | None = None,
) -> str:
    """The page, in HTML.

    Attention weights are rounded to 255ths, other fractions to 65535ths. If the weights that are
    not zero do not fit into 3 MB, only the 64, 32, 16, 8, 4 or 2 largest of each head and query are
    kept, and the page says so; sinks stay exact, and the page shows the sum of the other weights.

    Args:
        model: the model of the trace, or one with the same weights; the logit lens needs it.
        source: a trace that holds :data:`TAPS`, or tokens (T,) to run through the model; this does
            not keep whole attention maps.
        name: of the model, for the heading; None: the name of its folder.
        token: the position that is selected at first; None: that of :func:`most_telling`. A
            position in the page's address (``#token=5&layer=2&head=0``) takes precedence.

    Raises:
        GptOssError: the trace lacks taps, has another configuration or holds NaN; the tokens
            cannot be computed; ``token`` is not a position; the page would be too large.
    """
    config = model.config
    if isinstance(source, Trace):
        if model.config != source.config:
            raise GptOssError(
                "model and trace differ in their configuration: expected the same model"
            )
        tokens, tokenizer = source.tokens, known_tokenizer(source) or tokenizer_for(config, model)
        producer, policy = source.producer, source.policy or source.dtype_name or ""
    else:
        tokens, tokenizer = model.checked(source), tokenizer_for(config, model)
        producer = f"gptoss_ref {gptoss_ref.__version__} {model.backend.name}"
        policy = model.policy.name
    count = len(tokens)
    layer = min(1, config.num_hidden_layers - 1)
    if token is not None and not 0 <= token < count:
        raise GptOssError(f"token is {token}: expected a position from 0 to {count - 1}")
    recording = Recording(model, tokens)
    least = sum(values.nbytes for values in recording.arrays.values()) // SHRINKS
    if least > LIMIT:
        raise too_large(count, least)
    if isinstance(source, Trace):
        need(source, recording.needed, TAPS)
        for tap in recording.needed:
            recording(tap, source[tap])
    else:
        model(tokens, tap=recording)

    if token is None:
        token, layer = most_telling(recording.arrays["next_ranks"])
    shown = [tokens, *(recording.arrays[key].ravel() for key in ("lens", "final"))]
    facts: dict[str, Any] = {
        "format": "gptoss-inspector-1",
        "model": name or (model.path.name if model.path else "model"),
        "producer": producer,
        "policy": policy,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "groupSize": config.group_size,
        "experts": config.num_experts,
        "chosen": config.experts_per_token,
        "windows": [config.window(n) for n in range(config.num_hidden_layers)],
        "tokens": tokens.tolist(),
        "texts": texts(np.concatenate(shown), tokenizer),
        "special": [
            number
            for number in sorted(set(tokens.tolist()))
            if tokenizer is not None and tokenizer.is_special(number)
        ],
        "messages": messages(tokens.tolist(), tokenizer),
        "start": token,
        "startLayer": layer,
    }
    maps = recording.attention
    for keep in KEEP:
        if keep is not None:
            maps = {n: layer.largest(keep) for n, layer in maps.items()}
        layout, blob = packed({**recording.arrays, **attention_arrays(maps)})
        text = assembled({**facts, "kept": keep, "arrays": layout}, blob)
        size = len(text.encode())
        if size <= LIMIT:
            return text
    raise too_large(count, size)


def most_telling(ranks: Array) -> tuple[int, int]:
    """The token and the block with the largest improvement of the next token's rank.

    Ranks are those of the logit lens. Only tokens count whose next token has rank 0 in the end.

    Args:
        ranks: (R, N), R = L + 1 and N = T − 1: the rank (from 0) of the token that came next,
            after the embedding and after each block.
    """
    layers, count = len(ranks) - 1, ranks.shape[1] + 1
    if count == 1:
        return 0, min(1, layers - 1)
    logs = np.log1p(ranks.astype(np.float64))
    gains = np.where(ranks[-1] == 0, logs[:-1] - logs[1:], -np.inf)  # (L, T − 1)
    if not np.isfinite(gains).any():
        return count - 1, min(1, layers - 1)
    layer, token = np.unravel_index(gains.argmax(), gains.shape)
    return int(token), int(layer)


def too_large(count: int, size: int) -> GptOssError:
    """The error for a page of at least ``size`` bytes."""
    return GptOssError(
        f"the page of {count:,} tokens would take {size / 1e6:.1f} MB or more: expected at most "
        f"{LIMIT / 1e6:g} MB; about {max(1, int(0.9 * count * LIMIT / size)):,} tokens fit"
    )


def write(path: str | Path, text: str) -> None:
    """Write a page; an existing file is replaced when the new one is complete.

    Raises:
        GptOssError: the file cannot be written.
    """
    with replacing(Path(path)) as file:
        file.write(text.encode())


def attention_arrays(maps: Mapping[int, Sparse]) -> dict[str, Array]:
    """The arrays of all layers' attention, each in the smallest integers that hold it."""
    arrays: dict[str, Array] = {}
    for n, layer in sorted(maps.items()):
        arrays[f"attention.{n}.counts"] = layer.counts.astype(_fitting(layer.counts))
        arrays[f"attention.{n}.distances"] = layer.distances.astype(_fitting(layer.distances))
        arrays[f"attention.{n}.weights"] = layer.weights
    return arrays


def _fitting(values: Array) -> Any:
    """The smallest signed dtype; a model with a bug may look ahead, at negative distances."""
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    return next(
        d
        for d in (np.int8, np.int16, np.int32)
        if np.iinfo(d).min <= low and high <= np.iinfo(d).max
    )


def packed(arrays: Mapping[str, Array]) -> tuple[dict[str, Any], bytes]:
    """The offset of each array, and all arrays as bytes: little-endian, aligned to 4 bytes."""
    layout: dict[str, Any] = {}
    parts: list[bytes] = []
    begin = 0
    for name, values in arrays.items():
        raw = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        layout[name] = {"type": values.dtype.name, "shape": list(values.shape), "begin": begin}
        parts.append(raw + bytes(-len(raw) % 4))
        begin += len(parts[-1])
    return layout, b"".join(parts)


def assembled(facts: Mapping[str, Any], blob: bytes) -> str:
    """The page with these facts and bytes.

    Text of the prompt is never markup: it is in JSON with escaped <, > and &, and the script
    inserts it as text. The content security policy allows only the page's own script and style, by
    their hashes.
    """
    here = files("gptoss_ref.viz.inspector")
    parts = {name: (here / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    data = json.dumps(facts, separators=(",", ":"))
    for sign in "<>&":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    values = {
        "title": escape(str(facts["model"])),
        "css": parts["css"],
        "js": parts["js"],
        "css_hash": _hash(parts["css"]),
        "js_hash": _hash(parts["js"]),
        "facts": data,
        "arrays": base64.b64encode(zlib.compress(blob, 6)).decode(),
    }
    template = (here / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], template)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
