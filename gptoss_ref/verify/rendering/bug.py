"""What a rendering bug is: one rule of the renderer replaced by a wrong one, with its story."""

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
    """A small, named, wrong version of the renderer.

    Attributes:
        name: such as ``"channels-line-missing"``.
        rule: the rule that it replaces, a field of :class:`Rules`.
        summary: one sentence: what is wrong.
        consequence: what that does to the model.
        changes: the rules with this bug, given the rules without it; forms of it by label, the
            usual one first.
        reports: public reports, as ``repository#number``; empty: none was found.
        form: a departure that is not wrong: the format allows it, or OpenAI's own renderers differ.
        needs_ids: it changes tokens but not the text.
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
    """Put a function into the catalogue; its docstring is the summary.

    The function replaces ``rule``: it gets the right rule first, and then what that takes. Each
    entry of ``variants`` is a further form: arguments by name for the function.
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
