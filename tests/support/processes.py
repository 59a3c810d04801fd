"""Python code in an interpreter of its own: other environment variables, nothing imported yet."""

from __future__ import annotations

import os
import subprocess
import sys


def run_python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    return _run(code, environment).stdout.strip()


def standard_error(code: str, **environment: str) -> str:
    """What a fresh interpreter prints there."""
    return _run(code, environment).stderr


def _run(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done
