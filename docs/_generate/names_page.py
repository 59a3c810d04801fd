"""Writes the foreign names into docs/adapters.md: `python -m docs._generate.names_page`."""

from __future__ import annotations

from pathlib import Path

from gptoss_ref.config import GPT_OSS_20B
from gptoss_ref.tracing import taps
from gptoss_ref.verify.observe.adapters.framework_names import FRAMEWORKS, names_in
from gptoss_ref.verify.observe.adapters.names import DIALECTS, table

PAGE = Path(__file__).parents[1] / "adapters.md"
BEGIN, END = "<!-- names: begin -->\n", "<!-- names: end -->\n"
BEGIN_CALLS, END_CALLS = "<!-- calls: begin -->\n", "<!-- calls: end -->\n"


def names_table() -> str:
    """Every tap point outside the blocks and of block 0, with everybody's names for it."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, meaning in table(GPT_OSS_20B):
        note = f" ({meaning.layout})" if meaning.layout else ""
        found.setdefault((meaning.tap, meaning.dialect), []).append(f"`{name}`{note}")
    wanted = [tap for tap in taps.names(GPT_OSS_20B) if taps.split(tap)[0] in (None, 0)]
    head = "| tap point | OpenAI torch | transformers | TransformerLens | llama.cpp |\n"
    rows = [
        f"| `{tap}` | "
        + " | ".join("<br>".join(found.get((tap, dialect), ["–"])) for dialect in DIALECTS)
        + " |\n"
        for tap in wanted
    ]
    return head + "|---|---|---|---|---|\n" + "".join(rows)


def frameworks_table() -> str:
    """The same of frameworks whose calls are recorded."""
    named = {framework: names_in(framework, GPT_OSS_20B) for framework in FRAMEWORKS}
    wanted = [tap for tap in taps.names(GPT_OSS_20B) if taps.split(tap)[0] in (None, 0)]
    rows = ["| tap point | " + " | ".join(f"`{name}`" for name in FRAMEWORKS) + " |"]
    rows.append("|---" * (1 + len(FRAMEWORKS)) + "|")
    for tap in wanted:
        cells = []
        for names in named.values():
            found = [
                f"`{name}`" + (f" ({layout})" if layout else "")
                for name, (of, layout) in names.items()
                if of == tap
            ]
            cells.append("<br>".join(found) or "–")
        rows.append(f"| `{tap}` | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def page() -> str:
    """The page with its tables as they should be."""
    text = PAGE.read_text()
    for begin, end, made in (
        (BEGIN, END, names_table()),
        (BEGIN_CALLS, END_CALLS, frameworks_table()),
    ):
        before, _, rest = text.partition(begin)
        text = before + begin + made + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    PAGE.write_text(page())
