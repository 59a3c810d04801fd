"""The record of a rendering bug: a wrong rule of the renderer, with a description."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from gptoss_ref.verify.rendering.rules import SPECIFICATION, Rules

Change = Callable[[Rules], Rules]
"""The same rules with one replaced."""


@dataclass(frozen=True)
class RenderingBug:
    """A known bug: a wrong version of one rule of the renderer.

    Attributes:
        name: such as ``"channels-line-missing"``.
        rule: the rule that it replaces, a field of :class:`Rules`.
        summary: what is wrong, in one sentence.
        consequence: its effect on the model.
        changes: functions from the rules without this bug to those with it, by form; the usual
            form comes first.
        reports: public reports, as ``repository#number``; empty if none is known.
        form: a difference that is not wrong: the format allows it, or OpenAI's renderers differ.
        needs_ids: it changes the tokens but not the text.
    """

    name: str
    rule: str
    summary: str
    consequence: str
    changes: dict[str, Change]
    reports: tuple[str, ...] = ()
    form: bool = False
    needs_ids: bool = False

    def apply(self, rules: Rules = SPECIFICATION, variant: str = "") -> Rules:
        """``rules`` with this bug added, in one of its forms."""
        return self.changes[variant](rules)


CATALOGUE: defaultdict[str, list[RenderingBug]] = defaultdict(list)
"""Every bug that has been imported, by the module that defines it."""


def bug(
    name: str,
    rule: str,
    consequence: str,
    reports: str = "",
    *,
    form: bool = False,
    needs_ids: bool = False,
    variants: dict[str, dict[str, Any]] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add a function to the catalogue; its docstring is the summary.

    The function replaces ``rule``: its first argument is the right rule, the others are those of
    the rule. Each entry of ``variants`` is another form: keyword arguments for the function.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        forms: dict[str, dict[str, Any]] = {"": {}} | (variants or {})
        CATALOGUE[function.__module__].append(
            RenderingBug(
                *(name, rule, " ".join((function.__doc__ or "").split()), consequence),
                {label: _change(rule, function, options) for label, options in forms.items()},
                *(tuple(reports.split()), form, needs_ids),
            )
        )
        return function

    return decorate


def _change(rule: str, function: Callable[..., Any], options: dict[str, Any]) -> Change:
    def change(rules: Rules) -> Rules:
        wrong = partial(function, getattr(rules, rule), **options)
        return dataclasses.replace(rules, **{rule: wrong})

    return change
