"""The checks on several Python versions: `pipx run nox`, or `nox -s lint`. CI runs `.ci/run`."""

import os
from pathlib import Path

import nox

nox.options.sessions = ["tests", "lint"]

KERNEL_TESTS = ("tests/kernels", "tests/model/test_backends.py")


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """The README's test line."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", "-n", "2", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types and import rules."""
    session.install(".[lint]")
    session.run("ruff", "check", ".")
    session.run("mypy")
    session.run("lint-imports")


@nox.session
def interpreted(session: nox.Session) -> None:
    """The kernel tests with the kernels as plain Python, which can be stepped through."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", *KERNEL_TESTS, env={"NUMBA_DISABLE_JIT": "1"})


@nox.session
def bounds(session: nox.Session) -> None:
    """The kernel tests with every index checked against its array."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", *KERNEL_TESTS, env={"NUMBA_BOUNDSCHECK": "1"})


@nox.session
def generic(session: nox.Session) -> None:
    """The kernel tests compiled for the least CPU of this architecture: without AVX2."""
    session.install(".[test]")
    least = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    session.run("python", "-m", "pytest", *KERNEL_TESTS, env=least)


DEBIAN = (
    "python3.11,libpython3.11-stdlib,libc6,libstdc++6,libgomp1,zlib1g,libexpat1,libffi8,libssl3,"
    "libbz2-1.0,liblzma5,libsqlite3-0"
)
WHEELS = ("numpy", "numba", "safetensors", "tiktoken", "pytest", "hypothesis", "ml_dtypes")


@nox.session
def arm(session: nox.Session) -> None:
    """Some kernels on ARM, emulated by qemu-user: ten minutes; needs mmdebstrap, qemu-user-static.

    Debian's Python of arm64 is unpacked, not installed, and takes the wheels of aarch64. Compiling
    takes a minute or two a kernel there, so it is one script; tests may be named instead. Those
    that start another interpreter fail, because the emulator does not reach it.
    """
    root = Path(session.create_tmp())
    debian, wheels = root / "debian", root / "wheels"
    if not debian.exists():
        unpack = ("--arch=arm64", "--variant=extract", f"--include={DEBIAN}", "bookworm")
        session.run("mmdebstrap", *unpack, str(debian), external=True)
        platforms = [f"--platform=manylinux{kind}_aarch64" for kind in ("_2_28", "_2_17", "2014")]
        which = ("--python-version=3.11", "--only-binary=:all:", f"--target={wheels}")
        session.run("python", "-m", "pip", "install", *which, *platforms, *WHEELS)
    what = ("pytest", "-p", "no:cacheprovider", *session.posargs)
    session.run(
        *("qemu-aarch64-static", "-L", str(debian), str(debian / "usr/bin/python3.11"), "-m"),
        *(what if session.posargs else ("tests.support.arm",)),
        env={"PYTHONPATH": f"{wheels}{os.pathsep}{Path.cwd()}", "NUMBA_NUM_THREADS": "1"},
        external=True,
    )


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation: every cell is executed, and warnings are errors."""
    session.install(".[docs]")
    session.run("sphinx-build", "-W", "-n", "docs", "docs/_build", *session.posargs)


@nox.session
def kill_matrix(session: nox.Session) -> None:
    """Every bug of the torch twin through `diagnose`; the tests run a fast part of it."""
    session.install(".[test]")
    session.run("python", "-m", "docs._generate.kill_matrix", *session.posargs)


@nox.session
def false_alarms(session: nox.Session) -> None:
    """Correct runs through `diagnose` and `compare`, from a new seed, which is printed."""
    session.install(".[test]")
    options = session.posargs or ["--seed", "random"]
    session.run("python", "-m", "docs._generate.false_alarms", *options)


@nox.session
def harmony(session: nox.Session) -> None:
    """The law that nothing a model writes is lost, on 100,000 sequences; the tests try 500."""
    session.install(".[test]")
    session.run("python", "-m", "tests.support.harmony_law", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Every reader of strangers' files: `nox -s fuzz -- all --count 1000000 --figures`.

    With atheris, guided by coverage, too: `nox -s fuzz -- npz --engine atheris`.
    """
    session.install(".[test]")
    if "atheris" in session.posargs:
        session.install("atheris")
    session.run("python", "-m", "tests.fuzz", *(session.posargs or ["all"]))


@nox.session
def faults(session: nox.Session) -> None:
    """Killed writers, full disks, threads: `nox -s faults -- all --figures`, best as root."""
    session.install(".[test]")
    session.run("python", "-m", "tests.faults", *(session.posargs or ["all"]))


@nox.session
def mutation(session: nox.Session) -> None:
    """What the tests would not notice: `nox -s mutation -- layers`; it can be stopped."""
    session.install(".[test]", "mutmut>=3.8")
    rooms = session.posargs or ["layers", "numerics", "chat", "checkpoint"]
    session.run("python", "-m", "docs._generate.mutation", *rooms)


@nox.session
def benches(session: nox.Session) -> None:
    """The benches that need no large checkpoint."""
    session.install(".[bench]")
    session.run("python", "-m", "pytest", "benches")
    session.run("python", "benches/bench_import.py")
    session.run("python", "benches/bench_chat.py")
    session.run("python", "-m", "benches.bench_cold_start")
    session.run("python", "benches/bench_model.py")


@nox.session
def wild(session: nox.Session) -> None:
    """Other people's implementations, each in an environment of its own: writes docs/wild.md."""
    session.run("python", "examples/wild/run.py", *session.posargs)
