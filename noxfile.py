"""The checks on several Python versions: `pipx run nox`, or `nox -s lint`. CI runs `.ci/run`."""

import nox

nox.options.sessions = ["tests", "lint"]


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """The README's test line."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types and import rules."""
    session.install(".[lint]")
    session.run("ruff", "check", ".")
    session.run("mypy")
    session.run("lint-imports")


@nox.session
def benches(session: nox.Session) -> None:
    """The benches that need no large checkpoint."""
    session.install(".[bench]")
    session.run("python", "benches/bench_import.py")
    session.run("python", "benches/bench_chat.py")
