"""Runs the tests against every mutant, each in a process forked from one that has all imported.

    python -m docs._generate.mutation_runner RESULTS SECONDS TESTS... -- FILES...

This runs in a copy of the tree, whose files it mutates. The tests are collected once and run once
without a change, in a forked process too: this says which functions a test calls, and how much
time it takes. A mutant then meets the tests that call its function, the quickest first, up to so
many seconds of processor time, until one fails. Each result is a line of RESULTS, in JSON, and what
stands there already is not run again: a killed mutant of an unchanged function, and a survivor if
no test has changed either, or it has a reason. All limits are processor time, so a machine that
does something else in between changes no result.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import importlib
import inspect
import json
import os
import resource
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from docs._generate.mutation_mutants import Mutant, mutated
from docs._generate.mutation_page import reason

Calls = dict[str, dict[str, float]]
"""By function, the tests that call it and their seconds of processor time."""
KILLED, SLOW, SURVIVED = "killed", "slow", "survived"
MEMORY = 8 << 30
"""Bytes that a mutant may allocate: a size that it gets wrong must not fill the machine."""


class Failed(BaseException):
    """A test failed."""


class Runner:
    """A plugin of pytest that replaces the run of the tests."""

    def __init__(self, mutants: dict[Path, list[Mutant]], results: Path, seconds: float) -> None:
        self.mutants, self.results, self.seconds = mutants, results, seconds
        self.shared: dict[str, float] = defaultdict(float)
        self.warmed: dict[str, list[Any]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Notes the seconds that a fixture of several tests takes: in `_calls` one test pays it."""
        before = time.process_time()
        try:
            return (yield)
        finally:
            if fixturedef.scope != "function":
                self.shared[fixturedef.argname] += time.process_time() - before

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        """Ends the run at the first failure, without the work of a report."""
        skipped = call.excinfo is not None and call.excinfo.errisinstance(pytest.skip.Exception)
        expected = item.get_closest_marker("xfail") is not None
        if call.excinfo is not None and not skipped and not expected:
            raise Failed(item.nodeid)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """All mutants, instead of all tests."""
        for item in session.items:
            _without_shrinking(item)
        digest = _digest(sorted({item.path for item in session.items}))
        done = known(self.results, digest)
        gc.collect()
        gc.freeze()  # a child copies no page for the garbage collector
        if all(one.digest in done for ones in self.mutants.values() for one in ones):
            return True
        calls, self.warmed = self._kept_calls(session)
        by_id = {item.nodeid: item for item in session.items}
        pairs = [(file, one) for file, ones in self.mutants.items() for one in ones]
        again = {one["digest"] for one in lines(self.results)}  # what survived, first
        for file, mutant in sorted(pairs, key=lambda p: (p[1].digest not in again, p[1].digest)):
            if mutant.digest in done:
                continue
            chosen = within(self.seconds, calls.get(mutant.mangled, {}), f"test_{file.stem}.py::")
            items = {by_id[name]: took for name, took in chosen.items()}
            spent = sum(chosen.values())
            code, by = forked(lambda m=mutant, i=items: self._survives(m, i), 15 + 3 * spent)
            told = {
                "file": file.as_posix(), "function": mutant.function, "before": mutant.before,
                "after": mutant.after, "digest": mutant.digest, "tests": digest,
                "outcome": code, "by": by, "called": len(items), "seconds": round(spent, 2),
            }  # fmt: skip
            with self.results.open("a", encoding="utf-8") as results:
                results.write(json.dumps(told) + "\n")
        return True

    def _kept_calls(self, session: pytest.Session) -> tuple[Calls, dict[str, list[Any]]]:
        """`_calls`, of unchanged tests from the last run; and what `warm` returns."""
        file = self.results.with_suffix(".calls.json")
        kept: dict[str, Any] = {"modules": [], "caches": [], "calls": {}}
        if file.exists():
            kept.update(json.loads(file.read_text("utf-8")))
        of = {f"{item.nodeid} {_source(item)}": item for item in session.items}
        new = {key: item for key, item in of.items() if key not in kept["calls"]}
        if new:
            _, measured = forked(lambda: self._calls([*new.values()]), 0)
            found = json.loads(measured)
            for name in ("modules", "caches"):
                kept[name] += [one for one in found[name] if one not in kept[name]]
            kept["calls"] |= {key: found["calls"][item.nodeid] for key, item in new.items()}
            file.write_text(json.dumps(kept), encoding="utf-8")
        calls: Calls = defaultdict(dict)
        for key, item in of.items():
            took, functions = kept["calls"][key]
            for function in functions:
                calls[function][item.nodeid] = took
        return calls, warm(kept["modules"], kept["caches"])

    def _calls(self, items: list[pytest.Item]) -> tuple[str, str]:
        """By test, its seconds of processor time alone and the functions that it calls."""
        from mutmut.mutation.trampoline import set_mutant_under_test
        from mutmut.state import state

        set_mutant_under_test("stats")
        calls: dict[str, tuple[float, list[str]]] = {}
        for item, after in zip(items, [*items[1:], None], strict=True):
            state()._stats.clear()
            known, before = dict(self.shared), time.process_time()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            took = time.process_time() - before
            took += sum(known.get(name, 0) for name in item.fixturenames)  # type: ignore[attr-defined]
            calls[item.nodeid] = took, sorted(state()._stats)
        return SURVIVED, json.dumps({"calls": calls, "modules": [*sys.modules], "caches": filled()})

    def _survives(self, mutant: Mutant, items: dict[pytest.Item, float]) -> tuple[str, str]:
        """Runs the tests until one fails, or takes far longer than without the mutant."""
        from mutmut.mutation.trampoline import set_mutant_under_test

        for cached in self.warmed.get(mutant.mangled, ()):
            cached.cache_clear()
        set_mutant_under_test(mutant.key)
        for item, after in zip(items, [*list(items)[1:], None], strict=False):  # none, perhaps
            signal.setitimer(signal.ITIMER_PROF, 10 + 10 * items[item])  # of processor time
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        return SURVIVED, ""


def _source(item: pytest.Item) -> str:
    """Of a test's code, without what it calls."""
    function = getattr(item, "function", None)
    text = inspect.getsource(function) if function is not None else item.path.read_text("utf-8")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest(paths: list[Path]) -> str:
    found = hashlib.sha256()
    for path in paths:
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def filled() -> list[tuple[str, str]]:
    """Module and name of the caches without arguments that hold a value, such as a tokenizer."""
    return [
        (module.__name__, name)
        for module in [*sys.modules.values()]
        if module.__name__.partition(".")[0] in ("gptoss_ref", "tests")
        for name, found in [*vars(module).items()]
        if isinstance(found, functools._lru_cache_wrapper) and found.__module__ == module.__name__
        if found.cache_info().currsize and not inspect.signature(found).parameters
    ]


def warm(modules: list[str], caches: list[tuple[str, str]]) -> dict[str, list[Any]]:
    """Imports modules and fills caches once, for all children.

    Returns, by function, the caches that it fills: they are cleared before the function's mutants.
    """
    from mutmut.mutation.trampoline import set_mutant_under_test
    from mutmut.state import state

    for name in modules:
        with contextlib.suppress(Exception):  # some modules cannot be imported on their own
            importlib.import_module(name)
    by: dict[str, list[Any]] = defaultdict(list)
    set_mutant_under_test("stats")
    for module, name in caches:
        state()._stats.clear()
        cached = getattr(importlib.import_module(module), name)
        cached.cache_clear()  # with what another of them has filled, it would call less
        cached()
        for function in state()._stats:
            by[function].append(cached)
    set_mutant_under_test("")
    return by


def _without_shrinking(item: pytest.Item) -> None:
    """Hypothesis need not look for the smallest example that kills a mutant."""
    from hypothesis import Phase, settings

    test = getattr(item, "obj", None)
    now = getattr(test, "_hypothesis_internal_use_settings", None)
    if now is not None:
        quick = settings(now, phases=(Phase.explicit, Phase.generate), report_multiple_bugs=False)
        getattr(test, "__func__", test)._hypothesis_internal_use_settings = quick  # type: ignore[union-attr]


def within(seconds: float, tests: dict[str, float], own: str = "") -> dict[str, float]:
    """The quickest tests within that time, at least one.

    Those of the file's ``own`` module come first, and of the others each before its variants.
    """
    chosen: dict[str, float] = {}
    variants: Counter[str] = Counter()
    order: list[tuple[int, int, float, str]] = []
    for took, name in sorted((took, name) for name, took in tests.items()):
        function = name.partition("[")[0]
        order.append(
            (0, 0, took, name) if own and own in name else (1, variants[function], took, name)
        )
        variants[function] += 1
    for *_, took, name in sorted(order):
        if chosen and sum(chosen.values()) + took > seconds:
            continue
        chosen[name] = took
    return chosen


def forked(work: Callable[[], tuple[str, str]], limit: float) -> tuple[str, str]:
    """What ``work`` returns in a process of its own; SLOW if it takes more than ``limit`` s."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        if limit:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit) + 1, int(limit) + 2))
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            result = work()
        except BaseException as error:  # Failed, or what else gets past pytest
            result = (KILLED, str(error))
        with os.fdopen(write, "w") as pipe:
            pipe.write(json.dumps(result))
        os._exit(0)
    os.close(write)
    status, waited = None, 0.0
    poll = os.fdopen(read, "r")
    text = ""
    if not limit:
        text = poll.read()
    while status is None:
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            status = code
        elif limit and waited > 120 + 20 * limit:  # it waits for something; the sum of naps
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return SLOW, "waits"
        else:
            nap = min(0.1, 0.005 + waited / 20)
            time.sleep(nap)
            waited += nap
    text = text or poll.read()
    poll.close()
    if os.WIFSIGNALED(status):
        ended_by = signal.Signals(os.WTERMSIG(status))
        slow = ended_by in (signal.SIGPROF, signal.SIGXCPU, signal.SIGKILL)
        return (SLOW if slow else KILLED), ended_by.name
    outcome, by = json.loads(text) if text else (KILLED, "the process ended")
    if not limit and outcome != SURVIVED:
        raise SystemExit(f"without a mutant: {by}")
    return outcome, by


def known(results: Path, tests: str) -> set[str]:
    """Digests of the mutants that need not run again."""
    return {
        one["digest"]
        for one in lines(results)
        if one["outcome"] != SURVIVED or one["tests"] == tests or reason(one["file"], one)
    }


def lines(results: Path) -> Iterator[dict[str, Any]]:
    """The results so far, of each mutant the last one."""
    if results.exists():
        found = [json.loads(line) for line in results.read_text("utf-8").splitlines()]
        yield from {one["digest"]: one for one in found}.values()


def main(arguments: list[str]) -> int:
    """The command line."""
    at = arguments.index("--")
    results, seconds, tests = Path(arguments[0]), float(arguments[1]), arguments[2:at]
    mutants: dict[Path, list[Mutant]] = {}
    for file in map(Path, arguments[at + 1 :]):
        code, mutants[file] = mutated(file, file.read_text("utf-8"))
        file.write_text(code, encoding="utf-8")
    options = [
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:terminal",
        "-p",
        "no:faulthandler",
    ]
    scratch = results.with_suffix(".tmp")
    return int(
        pytest.main(
            [*tests, *options, "--rootdir=.", f"--basetemp={scratch}"],
            plugins=[Runner(mutants, results, seconds)],
        )
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
