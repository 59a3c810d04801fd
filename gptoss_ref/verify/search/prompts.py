"""Another prompt as the cause: tokens in front of it, or a replaced token.

It is searched before any bug, at the first tap point that diverges: a token in front of the prompt
moves all positions and is seen by every other token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.config import ModelConfig
from gptoss_ref.numerics import FLOAT32, Array, widen
from gptoss_ref.tracing.taps import axes, split
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.noise.metrics import measure_arrays
from gptoss_ref.verify.noise.tap_error import TapError
from gptoss_ref.verify.replay.branches import each_last
from gptoss_ref.verify.replay.evaluate import predict
from gptoss_ref.verify.replay.ops import SPECIFICATION
from gptoss_ref.verify.search.evidence import Evidence
from gptoss_ref.verify.search.mistakes import in_words
from gptoss_ref.verify.thresholds import (
    LISTED,
    MISTAKES,
    SAME_DIRECTION,
    SAME_EMBEDDING,
    WITH_TOKENS_IN_FRONT,
)
from gptoss_ref.weights import ModelWeights

FIRST_NORM = "block.0.attn.norm"

STARTS = (199998, 199999, 200002, 200006)
"""Special tokens of o200k_harmony that begin or end a message."""


def another_prompt(evidence: Evidence, diverging: list[TapError]) -> str | None:
    """Return the change of the prompt, in a sentence, if it explains the first divergences.

    Args:
        diverging: tap points that diverge from the specification, in the order of computation.
    """
    before, weights, trace = evidence.segments, evidence.weights, evidence.trace
    first = diverging[0]
    if first.tap == FIRST_NORM:
        return _ids_of_norm(weights, trace)
    mixing = [x.tap for x in diverging if "attention_weights" in before[x.tap].ops]
    if mixing and split(mixing[0])[0] in (0, None) and len(trace.tokens) > 1:
        # a window in the first block hides the number of tokens; the second block has no window
        second = [tap for tap in mixing if split(tap)[0] == 1]
        found = _in_front(weights, trace, [mixing[0], *second[:1]])
        if found is not None:
            return in_front_sentence(found)
    if not before[first.tap].inputs and first.wrong_rows.any():
        return _other_token(evidence, first)
    return None


def _in_front(weights: ModelWeights, trace: Trace, taps: list[str]) -> list[int] | None:
    """Return tokens in front with which the specification gives the recorded tap points."""
    config, tokens = trace.config, trace.tokens

    def distance(front: list[int]) -> float:
        longer = np.concatenate([np.asarray(front, np.int64), tokens])
        found = predict(weights, config, SPECIFICATION, longer, {}, taps, FLOAT32)
        return max(_apart(trace, tap, found[tap], len(front)) for tap in taps)

    most = config.max_position_embeddings - len(tokens)
    fronts = [front for front in in_front(config, len(tokens)) if len(front) <= most]
    apart = sorted((distance(front), front) for front in fronts)
    if not apart or not apart[0][0] < WITH_TOKENS_IN_FRONT * min(1.0, distance([])):
        return None
    least, nearest = apart[0]
    # a window may hide the number of tokens: then the fewest are named
    alike = [front for own, front in apart if own <= 2 * least and front[0] == nearest[0]]
    return min(alike, key=len)


def _apart(trace: Trace, tap: str, longer: Array, count: int) -> float:
    """Return the relative distance of a tap point from that with ``count`` tokens in front."""
    axis = axes(tap).index("T")
    rows = np.take(longer, range(count, longer.shape[axis]), axis)
    if tap.endswith("attn.weights"):
        rows = rows[..., count:]
    return measure_arrays(trace[tap], rows, axis).of(trace.observed(tap)).rel_l2


def _ids_of_norm(weights: ModelWeights, trace: Trace) -> str | None:
    """Return the tokens whose normalised embeddings the first norm has, if they are others."""
    scale = widen(weights.blocks[0].attn.norm_scale, np.float64)
    rows = np.asarray(trace[FIRST_NORM], np.float64)
    if not trace.observed(FIRST_NORM).all() or not scale.all():
        return None
    table = widen(np.asarray(weights.embedding), np.float64)
    sizes = np.maximum(np.linalg.norm(table, axis=1), 1e-300)
    found = []
    for row in rows / scale:
        cosines = table @ row / (sizes * max(float(np.linalg.norm(row)), 1e-300))
        found.append(int(np.argmax(cosines)))
        if not cosines[found[-1]] > 1 - SAME_DIRECTION:
            return None
    return other_ids(weights.embedding, trace.tokens, table[found])


def _other_token(evidence: Evidence, local: TapError) -> str | None:
    """Return the replaced tokens, found at a tap point that is computed from the tokens alone."""
    tap, trace, config = local.tap, evidence.trace, evidence.trace.config
    axis, values, every = axes(tap).index("T"), trace[tap], np.arange(config.vocab_size)
    if config.vocab_size > LISTED or tap.endswith("expert_indices"):
        return None

    def judged(tokens: Array) -> tuple[NDArray[np.bool_], bool]:
        given = Trace({tap: values}, tokens=tokens, config=config)
        (under,) = evidence.replayed(SPECIFICATION, [tap], given)
        return under.wrong_rows, under.excess <= 1

    def distances(before: Array) -> NDArray[np.float64]:
        row = np.take(values, len(before), axis)
        row = row[..., : len(before) + 1] if tap.endswith("attn.weights") else row
        apart = each_last(evidence.weights, config, before, every, tap) - row  # (V, …)
        return np.asarray(np.linalg.norm(apart.reshape(len(apart), -1), axis=1), np.float64)

    return other_tokens(trace.tokens, judged, distances)


def in_front(config: ModelConfig, length: int) -> list[list[int]]:
    """Return tokens that may precede a prompt of ``length``: a start token, or padding."""
    named = [i for i in (config.pad_token_id, *config.eos_token_ids) if i is not None]
    ids = [i for i in dict.fromkeys((*named, *STARTS, 0, 1, 2)) if i < config.vocab_size]
    pads = dict.fromkeys((2, 3, 4, *(-length % size for size in (8, 16, 32, 64))))
    padding = [[ids[0]] * n for n in pads if n > 1]
    return [[i] for i in ids] + padding


def in_front_sentence(front: Sequence[int]) -> str:
    """Return the sentence on tokens that preceded the prompt and were removed again."""
    if len(front) == 1:
        return (
            f"Token {front[0]} was put before the prompt, and its row taken off again: every "
            "other row saw it."
        )
    return (
        f"{len(front)} tokens {front[0]} of padding were put before the prompt and attended to, "
        "with positions shifted: their mask was forgotten."
    )


def other_tokens(
    tokens: Array,
    judged: Callable[[Array], tuple[NDArray[np.bool_], bool]],
    distances: Callable[[Array], NDArray[np.float64]],
) -> str | None:
    """Return the sentence on a few replaced tokens of a prompt, if they explain the numbers.

    The first wrong row is the first replaced token. Of all tokens, the one is taken whose row is
    nearest to the observed one; then the next wrong row is the next replaced token.

    Args:
        tokens: (T,) as stated.
        judged: from a prompt (T,) to the wrong rows (T,) and whether the prompt explains all.
        distances: from the tokens before a row to the distance (V,) of each token's row from it.
    """
    changed: Array = np.array(tokens)
    wrong, fits = judged(changed)
    for _ in range(MISTAKES):
        if fits or not wrong.any():
            break
        at = int(np.argmax(wrong))
        changed[at] = np.argmin(distances(changed[:at]))
        wrong, fits = judged(changed)
        if wrong[: at + 1].any():
            return None
    found = np.flatnonzero(changed != tokens).tolist()
    if not fits or not found:
        return None
    each = "; ".join(f"token {i} is {changed[i]}, and not {tokens[i]}" for i in found)
    agree = " All rows before it agree." if found[0] else ""
    return f"The prompt is another one: {each}.{agree if len(found) == 1 else ''}"


def other_ids(embedding: Array, tokens: Sequence[int] | Array, rows: Array) -> str | None:
    """Return the sentence on embeddings (T, D) that are other rows of ``embedding`` (V, D)."""
    table = widen(np.asarray(embedding), np.float64)
    rows, found = np.asarray(rows, np.float64), []
    size = np.einsum("ij,ij->i", table, table)
    for row in rows:
        distance = size - 2 * (table @ row) + row @ row
        nearest = int(np.argmin(distance))
        if distance[nearest] > SAME_EMBEDDING**2 * max(size[nearest], 1e-300):
            return None
        found.append(nearest)
    ids, theirs = np.asarray(tokens), np.array(found)
    equal = np.array(
        [a == b or np.array_equal(table[a], table[b]) for a, b in zip(ids, theirs, strict=True)]
    )
    if equal.all():
        return None
    most = len(ids) // 2 if len(ids) > 2 else 0
    for count in range(1, most + 1):
        if np.array_equal(ids[count:], theirs[:-count]):
            sentence = f"The prompt is shifted by {in_words(count)}"
        elif np.array_equal(ids[:-count], theirs[count:]):
            front = " ".join(map(str, theirs[:count]))
            sentence = (
                f"The prompt is shifted by {in_words(count)}, with "
                f"token{'s' * (count > 1)} {front} in front"
            )
        else:
            continue
        return f"{sentence}: row t is the embedding of another token."
    wrong = np.flatnonzero(~equal)
    at = int(wrong[0])
    more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return (
        f"The prompt is another one: the embedding at position {at} is that of token "
        f"{theirs[at]}, and not of {ids[at]}{more}."
    )
