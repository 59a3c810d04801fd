"""The logit lens: the likeliest next tokens after each block."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.numerics import Array
from gptoss_ref.viz.figure import drawing, ink, need, new_figure
from gptoss_ref.viz.labels import known_tokenizer, labels_of, tokenizer_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gptoss_ref.chat.tokenizer import Tokenizer
    from gptoss_ref.model import Model
    from gptoss_ref.tracing.trace import Trace

POSITIONS = 12


@drawing
def logit_lens(
    model: Model,
    trace: Trace,
    *,
    top: int = 1,
    positions: Iterable[int] | None = None,
    tokenizer: Tokenizer | None = None,
) -> Figure:
    """The likeliest next tokens if the model ended after the embedding or after each block.

    Each stream (T, D) goes through the final norm and the unembedding. A cell lists the ``top``
    tokens; its colour is the probability of the first. Bold: the model's final choice. Source:
    nostalgebraist 2020, "interpreting GPT: the logit lens".

    Args:
        model: the model of the trace, or one with the same weights.
        trace: holds ``embedding`` and ``block.*.mlp.residual``, each (T, D).
        positions: which tokens; None: the last 12.

    Raises:
        TraceError: a tap is missing.
        GptOssError: the trace has another configuration, or top or positions are out of range.
    """
    if model.config != trace.config:
        raise GptOssError("model and trace differ in their configuration: expected the same model")
    if not 1 <= top <= model.config.vocab_size:
        raise GptOssError(f"top is {top}: expected 1 to {model.config.vocab_size}")
    count = len(trace.tokens)
    chosen = list(range(count)[-POSITIONS:] if positions is None else positions)
    if not chosen or not all(0 <= p < count for p in chosen):
        raise GptOssError(f"positions are {chosen}: expected some of 0 to {count - 1}")
    taps = [
        "embedding",
        *(f"block.{n}.mlp.residual" for n in range(model.config.num_hidden_layers)),
    ]
    need(trace, taps, ["embedding", "*.mlp.residual"])

    best, chance = [], []
    for name in taps:
        probability = chances(read_out(model, trace[name][chosen]))  # (P, V)
        order = likeliest(probability, top)  # (P, top)
        best.append(order)
        chance.append(probability[np.arange(len(order)), order[:, 0]])
    words = known_tokenizer(trace, tokenizer) or tokenizer_for(model.config, model)
    figure = new_figure(0.85 * len(chosen) + 2.2, (0.25 + 0.17 * top) * len(taps) + 1.6)
    axes = figure.subplots()
    image = axes.imshow(np.array(chance), cmap=ink(), vmin=0, vmax=1, aspect="auto")
    for row, order in enumerate(best):
        for column, tokens in enumerate(order):
            axes.text(
                column,
                row,
                "\n".join(labels_of(tokens, words, 9)),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if chance[row][column] > 0.55 else "black",
                weight="bold" if tokens[0] == best[-1][column, 0] else "normal",
            )
    names = labels_of(trace.tokens[chosen], words, 9)
    axes.set_xticks(
        range(len(chosen)), labels=[f"{p}\n{n}" for p, n in zip(chosen, names, strict=True)]
    )
    axes.set_yticks(range(len(taps)), labels=["embedding", *map(str, range(len(taps) - 1))])
    axes.set(xlabel="token read so far (position and text)", ylabel="after block")
    axes.set_title("Likeliest next token by block; bold: the final choice")
    figure.colorbar(image, ax=axes, label="probability of the likeliest token")
    result: Figure = figure
    return result


def read_out(model: Model, stream: Array) -> Array:
    """Logits (T, V) of a residual stream (T, D), as if the model ended there."""
    x = model.backend.rmsnorm(
        np.asarray(stream, model.policy.dtype),
        model.weights.norm_scale,
        model.config.rms_norm_eps,
        policy=model.policy,
    )
    return model.backend.linear(x, model.weights.unembedding, policy=model.policy)


def chances(logits: Array) -> Array:
    """Softmax of ``logits`` (T, V) over V, in their dtype, summed in float64: (T, V).

    >>> chances(np.log([[1.0, 3.0]])).round(6)
    array([[0.25, 0.75]])
    """
    exp: Array = np.exp(logits - logits.max(axis=-1, keepdims=True))
    exp /= exp.sum(axis=-1, keepdims=True, dtype=np.float64).astype(exp.dtype)
    return exp


def likeliest(chance: Array, top: int) -> Array:
    """Indices (T, top) of the ``top`` largest of each row of ``chance`` (T, V), largest first.

    Ties are in order of index. The function does not sort the whole vocabulary.

    >>> likeliest(np.array([[0.1, 0.2, 0.6, 0.1]]), 2)
    array([[2, 1]])
    """
    some = np.argpartition(chance, -min(top, chance.shape[1]), axis=1)[:, -top:]
    some.sort(axis=1)
    order = np.argsort(-np.take_along_axis(chance, some, axis=1), axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1)
