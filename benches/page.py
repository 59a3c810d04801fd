"""Writing what a script measured into docs/performance.md, at the marks of its class of CPU."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"


def write_page(script: str, path: str, text: str) -> None:
    """Replace what stands between the marks of ``script`` for the instruction path ``path``.

    Raises:
        SystemExit: the page has no such marks.
    """
    begin, end = (f"<!-- {word} benches/{script} {path} -->" for word in ("begin", "end"))
    page = PAGE.read_text("utf-8")
    if begin not in page:
        raise SystemExit(f"{PAGE} has no place for the class {path} of {script}")
    before, rest = page.split(begin)
    PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}", "utf-8")
