"""docs/harmony.md, for readers of it: ``python -m docs._generate.harmony_page`` writes it."""

from __future__ import annotations

from pathlib import Path

from gptoss_ref.verify.rendering import BUGS, RenderingBug
from gptoss_ref.verify.serving import LAWS

PAGE = Path(__file__).parents[1] / "harmony.md"

INTRODUCTION = """# What goes wrong in Harmony

Written by `docs/_generate/harmony_page.py` from `gptoss_ref/verify/rendering/` and
`gptoss_ref/verify/serving/`.

Each of these bugs replaces one rule of the renderer by a wrong one. `gptoss-ref harmony check`
renders conversations with each of them, and names those that reproduce the observed prompts.
Reports are issues and pull requests on GitHub that show the bug. No report is listed if none was
found."""

PARTS = (
    ("System message", ("system",)),
    ("Which messages are rendered", ("history",)),
    ("Developer message and tools", ("developer",)),
    ("Headers", ("header",)),
    ("Contents", ("content",)),
    ("Ends", ("stop",)),
    ("The prompt's end, and the whole", ("prompt", "whole")),
)


def entry(bug: RenderingBug) -> str:
    """One bug as Markdown."""
    lines = [f"### {bug.name}", "", f"{bug.summary} {bug.consequence}"]
    forms = [label for label in bug.changes if label]
    if forms:
        lines += ["", f"Also: {'; '.join(forms)}."]
    if bug.needs_ids:
        lines += ["", "Seen in token ids only."]
    if bug.reports:
        lines += ["", f"Reports: {', '.join(bug.reports)}."]
    # text such as <|end|> and Array<any> is no HTML
    return (
        "\n".join(lines)
        .replace("Array<any>", "`Array<any>`")
        .replace(": <|endoftext|>", ": `<|endoftext|>`")
    )


def page() -> str:
    """The page."""
    out = [INTRODUCTION]
    for title, rules in PARTS:
        found = [bug for bug in BUGS if bug.rule in rules and not bug.form]
        out += [f"## {title}", *map(entry, found)]
    out += [
        "## Otherwise, but not wrong",
        "The format allows these, or OpenAI's own renderers differ. They are named, and not "
        "counted as wrong.",
        *(entry(bug) for bug in BUGS if bug.form),
        "## What holds of every server's answers",
        "`gptoss-ref harmony check --server URL --live` asks the served model short questions. "
        "These laws hold whatever it answers, in `/v1/chat/completions` and in `/v1/responses`:",
        "\n".join(f"- `{name}`: {law}" for name, law in LAWS.items()),
    ]
    return "\n\n".join(out) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
