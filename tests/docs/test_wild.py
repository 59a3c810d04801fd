"""docs/wild.md is what examples/wild/run.py wrote."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wild_run", ROOT / "examples/wild/run.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_written_from_the_results() -> None:
    script = _script()
    results = json.loads(script.RESULTS.read_text())
    assert script.PAGE.read_text() == script.page(results)
    assert set(results) <= {entry.script for entry in script.ENTRIES}


def test_a_row_says_that_it_was_not_run_again() -> None:
    script = _script()
    first, second, third, *_ = script.ENTRIES
    line = {"version": "1.2", "form": "float32", "named": [], "unnamed": [], "ok": True}
    results = {
        first.script: {"date": "2026-01-02", "lines": [{**line, "judged": 3}]},
        second.script: {"date": "2026-01-01", "lines": [{**line, "judged": 1}]},
    }
    rows = [row for row in script.page(results).splitlines() if row.endswith(".py` |")]
    assert "not run" not in rows[0]
    assert "float32: right (3 tap points)" in rows[0]
    assert "2026-01-01<br>not run again" in rows[1]
    assert "not run" in rows[2]
    results[third.script] = {"failed": {"date": "2026-01-02", "error": "no wheel"}}
    assert "not run<br>2026-01-02: failed (`no wheel`)" in script.page(results)
    wrong = {**line, "ok": False, "named": ["yarn-truncated"], "unnamed": ["block.0.attn.v"]}
    assert script.verdict(wrong) == "`yarn-truncated`, block.0.attn.v: wrong, no name"


def test_every_script_is_short_and_listed() -> None:
    script = _script()
    listed = {entry.script for entry in script.ENTRIES}
    for path in script.HERE.glob("*.py"):
        if path.name in ("run.py", "wild.py"):
            continue
        assert path.name in listed, f"{path.name} is not in run.py"
        lines = [x for x in path.read_text().splitlines() if x.strip() and x[:3] != '"""']
        assert len(lines) <= 20, f"{path.name} has {len(lines)} lines"
    assert {entry.environment for entry in script.ENTRIES} == set(script.ENVIRONMENTS)
