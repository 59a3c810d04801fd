"""Search for known bugs that explain the other implementation's gradients.

Every gradient is recomputed from the other's own inputs. One that rounding does not explain is
tried with each bug of the catalogue whose stages lie between it and its inputs; the bug that brings
it down to what rounding explains is the cause. Bugs found before are tried first, and in pairs.
Finally it looks for bugs that are smaller than rounding (``hidden.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gptoss_ref.model import Model
from gptoss_ref.tracing import gradients as names
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.gradients.hidden import most_votes
from gptoss_ref.verify.gradients.mutants import CATALOGUE, CONVENTIONS, GradientMutant
from gptoss_ref.verify.gradients.replay import Judged, Replay
from gptoss_ref.verify.noise.metrics import measure_arrays
from gptoss_ref.verify.noise.rounding import UNITS
from gptoss_ref.verify.report.diagnosis import Cause, Diagnosis, Unexplained, in_words
from gptoss_ref.verify.report.report import Report
from gptoss_ref.verify.report.row import ALL_LOST, Row
from gptoss_ref.verify.search.fit import Fit
from gptoss_ref.verify.thresholds import AS_WELL, FITS_WELL, HELPFUL, LOOKED_AT


@dataclass
class Search:
    """The search through the gradients of a trace.

    Attributes:
        judged: every gradient of the trace, in the order of the backward pass.
        explained: the bugs that explain a gradient, by its name.
        found: each bug, at the first gradient that it explains.
        unknown: gradients that nothing explains.
    """

    replay: Replay
    judged: list[Judged] = field(default_factory=list)
    explained: dict[str, tuple[GradientMutant, ...]] = field(default_factory=dict)
    found: list[Fit[GradientMutant]] = field(default_factory=list)
    unknown: list[Unexplained] = field(default_factory=list)

    def run(self) -> None:
        """Judge every gradient of the trace, in the order of the backward pass."""
        for name in self.replay.nodes:
            if name not in self.replay.trace:
                continue
            judged = self.replay.judge(name)
            assert judged.exact is not None
            kept = judged.exact.size <= LOOKED_AT  # the gradients of experts are gigabytes
            self.judged.append(judged if kept else replace(judged, exact=None))
            if judged.excess > 1:
                self._explain(judged)
        self._find_hidden()

    def _explain(self, judged: Judged) -> None:
        segment = self.replay.segment(judged.name)
        found = self._found()
        earlier = [mutant for mutant in found if segment & set(mutant.wrong)]
        candidates = [m for m in (*CONVENTIONS, *CATALOGUE) if segment & set(m.wrong)]
        best = self._best(judged.name, [(m,) for m in earlier])
        if best is None:
            best = self._best(judged.name, [(m,) for m in candidates])
        if best is None:
            firsts = earlier or self._helpful(judged, candidates)
            pairs = [(a, b) for a in firsts for b in candidates if a.name != b.name]
            # one bug may hide the other if it acts on the other's result
            best = self._best(judged.name, pairs) or self._best(
                judged.name, [(b, a) for a, b in pairs]
            )
        if best is None:
            self._unexplained(judged)
            return
        new = [mutant for mutant in best.candidates if not any(mutant is m for m in found)]
        self.found += [replace(best, candidates=(m,), before=judged.excess) for m in new]
        self.explained[judged.name] = best.candidates

    def _found(self) -> list[GradientMutant]:
        return [mutant for fit in self.found for mutant in fit.candidates]

    def _find_hidden(self) -> None:
        """Look for bugs that are smaller than rounding, the clearest vote first."""
        while True:
            taken = {mutant.name for mutant in self._found()}
            mutants = [m for m in CATALOGUE if m.name not in taken]
            best = most_votes(self.replay, self.judged, mutants, self.explained)
            if best is None:
                return
            (mutant,) = best.candidates
            voted = [j for j in self.judged if self.replay.segment(j.name) & set(mutant.wrong)]
            error = next(j.excess for j in voted if j.name == best.tap)
            self.found.append(replace(best, before=error, excess=error))
            for judged in voted:
                if judged.excess <= 1 or judged.name in self.explained:
                    before = self.explained.get(judged.name, ())
                    self.explained[judged.name] = (*before, mutant)

    def _best(
        self, name: str, candidates: Sequence[tuple[GradientMutant, ...]]
    ) -> Fit[GradientMutant] | None:
        """The candidate that leaves the least excess, with what fits as well."""
        tried = [
            (self.replay.judge(name, [m.wrong for m in bugs]).excess, n, bugs)
            for n, bugs in enumerate(candidates)
        ]
        explaining = sorted((left, n, bugs) for left, n, bugs in tried if left <= 1)
        if not explaining:
            return None
        least, _, bugs = explaining[0]
        fit = Fit(bugs, excess=least, tap=name)
        others = dict.fromkeys(
            m.name
            for left, _, more in explaining[1:]
            for m in more
            if left <= max(AS_WELL * least, FITS_WELL) and m.name not in fit.names
        )
        return replace(fit, alternatives=dict.fromkeys(fit.names, tuple(others)))

    def _helpful(
        self, judged: Judged, candidates: Sequence[GradientMutant]
    ) -> list[GradientMutant]:
        """Bugs that explain a large part of the error."""
        return [
            m
            for m in candidates
            if self.replay.judge(judged.name, [m.wrong]).excess < HELPFUL * judged.excess
        ]

    def _unexplained(self, judged: Judged) -> None:
        stage = names.split(judged.name)[1]
        for n, item in enumerate(self.unknown):
            if names.split(item.tap)[1] == stage:
                self.unknown[n] = replace(item, taps=(*item.taps, judged.name))
                return
        rows = judged.wrong_rows
        where = f"{int(rows.sum())} of {len(rows)} rows"
        self.unknown.append(Unexplained(judged.name, (judged.name,), judged.excess, where))

    def rows(self) -> list[Row]:
        """Rows of the report, one per gradient of the trace."""
        return [self._row(judged) for judged in self.judged]

    def _row(self, judged: Judged) -> Row:
        trace, errors = self.replay.trace, judged.errors
        wrong = judged.excess > 1
        verdict, note = "ok", ""
        by = self.explained.get(judged.name, ())
        names_of = " and ".join(m.name for m in by)
        if wrong:
            verdict = "nan" if errors.broken.any() else "diverges"
            note = f"off by {in_words(judged.excess)}"
            note += f"; explained by {names_of}" if by else "; not explained"
            if by and all(m.equivalent for m in by):
                verdict = "rewritten"
        elif int(errors.lost.sum()) == trace[judged.name].size:
            verdict, note = "unjudged", ALL_LOST
        elif by and judged.name in {fit.tap for fit in self.found}:
            verdict = "hidden"
            note = f"less than rounding explains, but its values side with {names_of}"
        rows = np.flatnonzero(judged.wrong_rows)
        tokens = names.of_tap(judged.name) is not None
        return Row(
            name=judged.name,
            shape=trace.shape_of(judged.name),
            dtypes=("float64", trace.dtype_of(judged.name)),
            max_abs=errors.max_abs,
            rel_l2=errors.rel_l2,
            cosine=errors.cosine,
            rounding_units=errors.rel_l2 / UNITS[self.replay.rounding],
            allowed=judged.level.allowed,
            excess=judged.excess,
            verdict=verdict,  # type: ignore[arg-type]
            note=note,
            first_token=int(rows[0]) if wrong and tokens and rows.size else None,
        )

    def causes(self) -> tuple[Cause, ...]:
        """The bugs found, in the order of the backward pass, without the conventions."""
        return tuple(self._cause(fit) for fit in self.found if not fit.candidates[0].equivalent)

    def _cause(self, fit: Fit[GradientMutant]) -> Cause:
        (mutant,) = fit.candidates
        trace = self.replay.trace
        taps = [name for name, bugs in self.explained.items() if any(m is mutant for m in bugs)]
        hit = {names.split(name)[0] for name in taps} - {None}
        stages = {names.split(name)[1] for name in taps}
        able = {n for n, stage in map(names.split, trace.gradients) if stage in stages} - {None}
        blocks = None
        if fit.share is None and hit != able:  # votes are counted over all blocks
            blocks = tuple(sorted(n for n in hit if n is not None))
        return Cause.of(fit, mutant, variant=mutant.label, blocks=blocks)

    def conventions(self) -> tuple[str, ...]:
        """Conventions that differ and are not bugs, in words."""
        harmless = (mutant for mutant in self._found() if mutant.equivalent)
        return tuple(f"{m.name}: {m.summary} {m.note}" for m in harmless)


def searched(model: Model, trace: Trace, rounding: str) -> Search:
    """The finished search through the gradients of a trace."""
    search = Search(Replay(model.weights, trace, rounding))
    search.run()
    return search


def with_gradients(diagnosis: Diagnosis, model: Model, trace: Trace, rounding: str) -> Diagnosis:
    """Append the diagnosis of the trace's gradients to that of the forward pass."""
    search = searched(model, trace, rounding)
    every = names.names(trace.config)
    return replace(
        diagnosis,
        taps=diagnosis.taps + len(every),
        rows=(*diagnosis.rows, *search.rows()),
        missing=(*diagnosis.missing, *(name for name in every if name not in trace)),
        causes=(*diagnosis.causes, *search.causes()),
        unexplained=(*diagnosis.unexplained, *search.unknown),
        rewritings=(*diagnosis.rewritings, *search.conventions()),
    )


def compared(
    report: Report, ref: Trace, other: Trace, model: Model | None, rounding: str
) -> Report:
    """Append the gradients that both traces hold to a comparison of the forward pass.

    With the model each is recomputed from OTHER's own inputs. Without it the effect of rounding is
    unknown, so the gradients are shown and not judged.
    """
    every = names.names(ref.config)
    common = [name for name in every if name in ref and name in other]
    if model is not None and other.targets is not None:
        found = [row for row in searched(model, other, rounding).rows() if row.name in common]
        note = "gradients are judged by themselves, each recomputed from OTHER's own inputs"
    else:
        found = [_unjudged(ref, other, name, rounding) for name in common]
        note = "gradients are judged only with the model, and with OTHER's targets"
    return replace(
        report,
        taps=report.taps + len(every),
        rows=(*report.rows, *found),
        missing=(*report.missing, *(name for name in every if name not in common)),
        notes=(*report.notes, note),
    )


def _unjudged(ref: Trace, other: Trace, name: str, rounding: str) -> Row:
    errors = measure_arrays(ref[name], other[name])
    return Row(
        name=name,
        shape=other.shape_of(name),
        dtypes=(ref.dtype_of(name), other.dtype_of(name)),
        max_abs=errors.max_abs,
        rel_l2=errors.rel_l2,
        cosine=errors.cosine,
        rounding_units=errors.rel_l2 / UNITS[rounding],
    )
