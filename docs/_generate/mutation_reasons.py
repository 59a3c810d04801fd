"""Why a mutant that no test kills is no gap of the tests."""

from __future__ import annotations

REASONS: dict[tuple[str, str, str], str] = {}
"""By the end of the file's name, the function (`*`: any), a part of the old line or the new."""
