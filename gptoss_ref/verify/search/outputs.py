"""The search if only outputs of a model are known: logits, or some log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.model import Model
from gptoss_ref.numerics import FLOAT32, FLOAT64, Array
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.noise.metrics import logit_figures, shift_of, usual_excess
from gptoss_ref.verify.noise.rounding import UNITS
from gptoss_ref.verify.noise.rounding_shown import (
    by_errors_in_words,
    coarser_than,
    grid_under_constant,
)
from gptoss_ref.verify.observe.observation import LogprobObservation, log_probabilities
from gptoss_ref.verify.progress import Steps
from gptoss_ref.verify.replay.branches import each_last
from gptoss_ref.verify.replay.evaluate import predict
from gptoss_ref.verify.replay.ops import SPECIFICATION
from gptoss_ref.verify.search.end_to_end import WholeModels
from gptoss_ref.verify.search.mistakes import (
    Mistake,
    in_front,
    in_front_sentence,
    mistakes,
    other_tokens,
)
from gptoss_ref.verify.search.target import Floats, Target
from gptoss_ref.verify.search.trials import Trials
from gptoss_ref.verify.thresholds import LISTED, MISTAKES, TYPICAL, USUAL_ROWS

OUTPUTS = frozenset(("norm", "logits"))
"""Tap points behind all blocks."""


@dataclass(frozen=True)
class OutputsFound:
    """A search in one array of outputs, with its remarks.

    Attributes:
        search: of whole models; it uses the array without the mistakes.
        mistakes, remarks: changes of the array by its recording, in sentences; the remarks are
            harmless.
        extra: further numbers of the logits, see ``Row`` of the report.
    """

    search: WholeModels
    mistakes: tuple[str, ...]
    remarks: tuple[str, ...]
    extra: dict[str, float]


def search_outputs(
    model: Model, trace: Trace, tap: str, rounding: str, steps: Steps, stated: bool = True
) -> OutputsFound:
    """Search in one of :data:`OUTPUTS` of a trace that has nothing else.

    Args:
        stated: whether the caller stated the rounding; else the numbers may show a coarser one.
    """
    weights, config, tokens = model.weights, model.config, trace.tokens
    seen = trace.observed(tap)
    observed = np.asarray(trace[tap], np.float64)[seen]
    (whole,) = predict(weights, config, SPECIFICATION, tokens, {}, [tap], FLOAT64).values()
    exact = whole[seen]
    said: list[str] = []
    remarks: list[str] = []
    constant = False
    grid = grid_under_constant(exact, observed) if tap == "logits" and not stated else None
    if grid is not None and grid in coarser_than(rounding):
        remarks.append(
            f"the logits lie on the grid of {grid}, but for a constant a row: judged as {grid}"
        )
        rounding = grid
    search = _search_of(model, tokens, tap, observed, exact, seen, rounding, steps)
    for _ in range(MISTAKES):
        found = None
        if search.specification.excess > 1:
            found = _mistake(model, search, tokens, exact, observed)
        if found is None or found.sentence in (*said, *remarks):
            break
        (remarks if found.harmless else said).append(found.sentence)
        constant |= found.constant
        if found.mended is None:
            search.stop()
            break
        observed = found.mended
        search = _search_of(model, tokens, tap, observed, exact, seen, rounding, steps)
    coarser = None
    if not stated and not said:
        coarser = _coarser(search, model, tokens, tap, observed, exact, seen, steps)
    search.run(together=coarser is None)
    if coarser is not None and search.best is None:
        remarks.append(by_errors_in_words(rounding, coarser.rounding))
        search = coarser
        search.run()
    if tap == "logits" and search.specification.excess <= 1 and not said:
        shift = shift_of(lambda r: exact[r], lambda r: observed[r], *observed.shape)
        remark = shift.remark
        remarks += [remark] if remark is not None and not constant else []
    extra = {}
    if tap == "logits":
        extra = logit_figures(lambda r: exact[r], lambda r: observed[r], *observed.shape)
    return OutputsFound(search, tuple(said), tuple(remarks), extra)


def _coarser(
    search: WholeModels,
    model: Model,
    tokens: Array,
    tap: str,
    observed: Array,
    exact: Array,
    seen: Array,
    steps: Steps,
) -> WholeModels | None:
    """Return the search under a coarser rounding that explains the outputs, if there is one."""
    if not 1 < search.specification.excess < math.inf:
        return None
    for rounding in coarser_than(search.rounding):
        found = _search_of(model, tokens, tap, observed, exact, seen, rounding, steps)
        usual = float(np.median(found.specification.error)) / found.specification.typical
        if found.specification.excess <= 1 and usual >= TYPICAL / USUAL_ROWS:
            return found
    return None


def _search_of(
    model: Model,
    tokens: Array,
    tap: str,
    observed: Array,
    exact: Array,
    seen: Array,
    rounding: str,
    steps: Steps,
) -> WholeModels:
    """Return the search in the rows ``seen`` (T,) of one array of outputs (T, D) or (T, V)."""
    floor = UNITS[rounding] / 8
    if tap == "logits":  # modulo a constant a row
        grown, usual = (_size(x) / max(_size(_centred(x)), 1e-300) for x in (observed, exact))
        floor *= 8 * grown if grown > 2 * usual > 0 else 1
    form = _form(tap)
    see = form if seen.all() else lambda values: form(values[seen[: len(values)]])
    target = Target(tap, see, form(observed), np.flatnonzero(seen), True, floor)
    return WholeModels(Trials(model.weights, model.config, tokens, target, rounding, steps))


def _form(tap: str) -> Callable[[Array], Array]:
    """Return the part of an array of outputs that is compared."""
    return _centred if tap == "logits" else _as_float64


def _apart(search: WholeModels, one: Array, other: Array) -> Array:
    """(P,) distances of the rows of two arrays of outputs."""
    target = search.target
    form = _form(target.tap)
    return target.errors(form(one), form(other))


def _fits(search: WholeModels, exact: Array, observed: Array | None) -> bool:
    """Return whether outputs (P, …) equal others except for rounding."""
    if observed is None:
        return False
    return usual_excess(_apart(search, exact, observed), search.specification.allowed) <= 1


def _near(search: WholeModels, exact: Array, observed: Array) -> NDArray[np.bool_]:
    """(P,) whether rows of outputs are equal except for rounding."""
    near: NDArray[np.bool_] = (
        _apart(search, exact, observed) <= 4 * search.specification.allowed[-1]
    )
    return near


def _size(x: Array) -> float:
    return float(np.linalg.norm(np.where(np.isfinite(x), x, 0)))


def _as_float64(values: Array) -> Array:
    return np.asarray(values, np.float64)


def _centred(logits: Array) -> Array:
    """Logits (T, V) without the mean of each row: a constant there changes no probability."""
    wide = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(wide)
        mean = np.where(finite, wide, 0).sum(1) / np.maximum(finite.sum(1), 1)
        centred: Array = wide - mean[:, None]
    return centred


def _mistake(
    model: Model, search: WholeModels, tokens: Array, exact: Array, observed: Array
) -> Mistake | None:
    """Return the mistake in the recording of the outputs, if one explains them."""
    target = search.target
    for found in mistakes(target.tap, exact, observed):
        if found.certain or _fits(search, exact, found.mended):
            return found
    if len(exact) < len(tokens):  # what follows needs all rows
        return None
    for front in in_front(model.config, len(tokens)):
        longer = np.concatenate([front, tokens])
        if len(longer) <= model.config.max_position_embeddings:
            values = _outputs_of(model, longer, target.tap)
            if _fits(search, values[len(front) :], observed):
                return Mistake(in_front_sentence(front), None)
    return _other_token(model, search, tokens, exact, observed)


def _outputs_of(model: Model, tokens: Array, tap: str) -> Array:
    """Return one array of outputs of a prompt (T,) by the specification in float32."""
    found = predict(model.weights, model.config, SPECIFICATION, tokens, {}, [tap], FLOAT32)
    return found[tap]


def _other_token(
    model: Model, search: WholeModels, tokens: Array, exact: Array, observed: Array
) -> Mistake | None:
    """Return replaced tokens: all rows before the first agree, and none from it on."""
    tap, vocabulary = search.target.tap, model.config.vocab_size
    wrong = ~_near(search, exact, observed)
    if not wrong[int(np.argmax(wrong)) :].all() or vocabulary > LISTED:
        return None

    def judged(prompt: Array) -> tuple[NDArray[np.bool_], bool]:
        values = _outputs_of(model, prompt, tap)
        return ~_near(search, values, observed), _fits(search, values, observed)

    def distances(before: Array) -> Floats:
        last = each_last(model.weights, model.config, before, np.arange(vocabulary), tap)  # (V, …)
        return _apart(search, last, np.broadcast_to(observed[len(before)], last.shape))

    sentence = other_tokens(tokens, judged, distances)
    return None if sentence is None else Mistake(sentence, None)


def search_observation(
    model: Model, observation: LogprobObservation, rounding: str, steps: Steps
) -> WholeModels:
    """Search in log-probabilities of some tokens at some positions."""
    finite = np.isfinite(observation.values)
    rows, ids, values = (a[finite] for a in (observation.rows, observation.ids, observation.values))
    positions, place = np.unique(rows, return_inverse=True)  # (P,), (N,)
    counts = np.bincount(place)  # (P,)
    column = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)  # (N,)
    weight = np.sqrt(counts.max() / counts)[place]  # (N,) so that rows with few tokens count alike

    def table(numbers: Array) -> Array:
        """The first n of (N,) -> (p, K), zero where a position shows fewer tokens."""
        n = len(numbers)
        out = np.zeros((len(np.unique(rows[:n])), counts.max()))
        out[place[:n], column[:n]] = numbers * weight[:n]
        return out

    def see(logits: Array) -> Array:
        shown = rows < len(logits)  # rows are ascending
        return table(log_probabilities(logits, rows[shown], ids[shown]))

    where = np.asarray(positions, np.int64)
    target = Target("logits", see, table(values), where, False, observation.resolution)
    asked = model.weights, model.config, observation.tokens
    search = WholeModels(Trials(*asked, target, rounding, steps))
    search.run()
    return search
