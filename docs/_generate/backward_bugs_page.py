"""Writes docs/backward_bugs.md: `python -m docs._generate.backward_bugs_page`."""

from __future__ import annotations

from pathlib import Path

from gptoss_ref.verify.gradients.mutants import CATALOGUE, CONVENTIONS, GradientMutant

PAGE = Path(__file__).parents[1] / "backward_bugs.md"
HEAD = """# What goes wrong in backward passes

Bugs of backward passes that `diagnose` names, in the order in which a backward pass meets them.
Each is built into a torch model apart from this catalogue
(`tests/support/buggy_twin/backward.py`); the [kill matrix](kill_matrix.md#backward-passes) shows
which of them is named there. Bugs with no report are slips that the derivations invite.

"""


def _entry(mutant: GradientMutant) -> str:
    lines = [f"## {mutant.name}", "", f"{mutant.summary} {mutant.consequence}"]
    if mutant.note:
        lines += ["", mutant.note]
    lines += ["", f"Shows first at `{mutant.stage}`."]
    if mutant.reports:
        lines[-1] += f" Reported: {', '.join(mutant.reports)}."
    return "\n".join(lines) + "\n"


def page() -> str:
    """The page as it should be."""
    by_name = {mutant.name: mutant for mutant in CATALOGUE}
    conventions = "# Conventions\n\nImplementations differ in them, and none of them is a bug.\n\n"
    return (
        HEAD
        + "\n".join(map(_entry, by_name.values()))
        + "\n"
        + conventions.replace("# Conv", "## Conv", 1)
        + "\n".join(_entry(m).replace("## ", "### ", 1) for m in CONVENTIONS)
    )


if __name__ == "__main__":
    PAGE.write_text(page())
