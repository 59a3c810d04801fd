"""Writes the foreign names into docs/adapters.md: `python -m docs._generate.names_page`."""

from __future__ import annotations

from pathlib import Path

from gptoss_ref.config import GPT_OSS_20B
from gptoss_ref.tracing import taps
from gptoss_ref.verify.observe.adapters.names import DIALECTS, table

PAGE = Path(__file__).parents[1] / "adapters.md"
BEGIN, END = "<!-- names: begin -->\n", "<!-- names: end -->\n"


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


def page() -> str:
    """The page with its table as it should be."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return before + BEGIN + names_table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page())
