"""Fault scenarios for writers, readers and caches. Each returns an `Outcome`."""

from __future__ import annotations

import contextlib
import errno
import io
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gptoss_ref as gr
from gptoss_ref.errors import CheckpointError, GptOssError
from gptoss_ref.kernels import warmup
from tests.faults.writers import TOKENS, WRITERS, content, model


@dataclass
class Outcome:
    """The result of one scenario: the promise held in `held` of `times` trials; `failures` lists
    the others."""

    tried: str
    promise: str
    times: int
    held: int
    seconds: float
    note: str
    failures: list[str]


@dataclass
class Trial:
    """A running scenario: its failures so far, and when it began."""

    tried: str
    promise: str
    failures: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def ended(self, times: int, note: str = "", failed: int | None = None) -> Outcome:
        """The outcome of `times` trials; each has at most one failure unless `failed` is given."""
        held = times - (len(self.failures) if failed is None else failed)
        seconds = time.perf_counter() - self.began
        return Outcome(self.tried, self.promise, times, held, seconds, note, self.failures)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


# --- killed ---


def _child(name: str, path: str, ready: Any) -> None:
    ready.send(None)
    WRITERS[name].write(Path(path))


class Killer:
    """Starts writing processes, forked from a process that has imported everything."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.faults.primed"])

    def write(self, name: str, path: Path, after: float | None) -> float:
        """Run a writer, kill it after `after` seconds (None: never), and return its seconds."""
        ready, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_child, args=(name, str(path), theirs))
        process.start()
        ready.recv()
        began = time.perf_counter()
        process.join(after)
        if process.exitcode is None:
            process.kill()
            process.join()
        elif after is None and process.exitcode:
            raise RuntimeError(f"{name}: exit status {process.exitcode}")
        ready.close()
        return time.perf_counter() - began


def killed(name: str, times: int, seed: int) -> Outcome:
    """SIGKILL at random moments leaves the old or the new result, and writing still works."""
    trial = Trial(
        f"`{name}` killed by SIGKILL at a random moment",
        "the target holds the complete old or the complete new result",
    )
    rng, whole = random.Random(f"{name} {seed}"), 0
    writer, killer = WRITERS[name], Killer()
    with _scratch() as folder:
        target = folder / "result"
        seconds = max(killer.write(name, target, None) for _ in range(1))
        expected = content(target)
        old = None
        for i in range(times):
            if writer.replaces:
                target.write_text("old")
                old = content(target)
            else:
                shutil.rmtree(target, ignore_errors=True)
            killer.write(name, target, rng.uniform(0, 1.2 * seconds))
            now = content(target)
            whole += now == expected
            if now not in (old, expected):
                trial.failures.append(f"{name}: half written after kill {i}")
        left = len(list(folder.glob(".*.partial")))
        if not writer.replaces:
            shutil.rmtree(target, ignore_errors=True)
        killer.write(name, target, None)
        if content(target) != expected:
            trial.failures.append(f"{name}: cannot write after the kills")
    return trial.ended(
        times,
        note=f"{whole} runs had ended before the kill, {times - whole} had not; {left} hidden "
        "`.partial` files or folders were left, which do not disturb the next run",
    )


# --- a full disk ---


@contextlib.contextmanager
def small_disk(folder: Path, nbytes: int) -> Iterator[Path]:
    """Mount a file system of `nbytes`; needs root on Linux."""
    place = folder / "disk"
    place.mkdir(exist_ok=True)
    options = f"size={max(nbytes, 4096)}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def full_disk(name: str, times: int, seed: int) -> Outcome:
    """Too little room, from none to almost enough: one clear error, and the old result stays."""
    trial = Trial(
        f"`{name}` onto a file system with too little room",
        "one `GptOssError`; the old result is unchanged; no other file is left",
    )
    rng = random.Random(f"{name} {seed}")
    writer = WRITERS[name]
    with _scratch() as folder:
        writer.write(folder / "result")
        files = [folder / "result", *(folder / "result").rglob("*")]
        needed = sum(-(-file.stat().st_size // 4096) * 4096 for file in files if file.is_file())
        said = io.StringIO()
        for i in range(times):
            room = rng.randrange(4096, needed - 4096) if needed > 8192 else 4096
            with small_disk(folder, room) as disk:
                target = disk / "result"
                old = None
                if writer.replaces:
                    target.write_bytes(b"")  # takes no block
                    old = content(target)
                before = sorted(disk.iterdir())
                try:
                    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                        writer.write(target)
                    trial.failures.append(f"{name}: {room} bytes were enough for {needed}, run {i}")
                except GptOssError:
                    pass
                except BaseException as error:
                    trial.failures.append(f"{name}: {type(error).__name__}: {error}, run {i}")
                if content(target) != old or sorted(disk.iterdir()) != before:
                    trial.failures.append(f"{name}: left something, run {i}")
    return trial.ended(
        times, failed=len({failure.rpartition(" ")[2] for failure in trial.failures})
    )


# --- reading while another process writes ---


def _convert_again_and_again(folder: str, times: int) -> None:
    for i in range(times):
        gr.convert("tiny", Path(folder) / f"new-{i}", max_shard_bytes=500_000)


def read_while_converting(times: int, seed: int) -> Outcome:
    """A reader loads a checkpoint that another process is writing: it finds none or all of it."""
    trial = Trial(
        "`load` of a folder while another process converts into it",
        "the folder does not exist, or it is complete and gives the same logits",
    )
    polls = 0
    context = multiprocessing.get_context("forkserver")
    expected = model()(TOKENS[:3]).tobytes()
    with _scratch() as folder:
        process = context.Process(target=_convert_again_and_again, args=(str(folder), times))
        process.start()
        for i in range(times):
            while True:
                polls += 1
                try:
                    read = gr.load(folder / f"new-{i}", backend="numpy")
                except CheckpointError as error:
                    if "no such folder" not in str(error):
                        trial.failures.append(str(error))
                        break
                    if process.exitcode:
                        raise RuntimeError("the writer failed") from None
                    time.sleep(0.001)
                    continue
                if read(TOKENS[:3]).tobytes() != expected:
                    trial.failures.append(f"other logits of new-{i}")
                break
        process.join()
    return trial.ended(
        times, note=f"asked {polls:,} times, {polls - times:,} of them before the folder existed"
    )


def _save_again_and_again(path: str, times: int) -> None:
    traces = [gr.trace(model(), [n] * 30, taps="logits") for n in (65, 66)]
    for i in range(times):
        traces[i % 2].save(path)


def read_while_replacing(times: int, seed: int) -> Outcome:
    """A trace file is replaced repeatedly: a reader sees one or the other, never a mixture."""
    trial = Trial(
        "a trace read while another process replaces it",
        "it is one of the two traces, complete",
    )
    reads = 0
    context = multiprocessing.get_context("forkserver")
    known = {gr.trace(model(), [n] * 30, taps="logits")["logits"].tobytes() for n in (65, 66)}
    with _scratch() as folder:
        path = folder / "run.trace"
        _save_again_and_again(str(path), 1)
        process = context.Process(target=_save_again_and_again, args=(str(path), times))
        process.start()
        while process.exitcode is None:
            reads += 1
            if gr.Trace.load(path)["logits"].tobytes() not in known:
                trial.failures.append(f"a mixture at read {reads}")
        process.join()
    return trial.ended(reads, note=f"replaced {times:,} times")


# --- the kernel cache, the home, the clock ---

SAY = 'import gptoss_ref as gr; print(gr.load("tiny", backend="numba")([1, 2, 3]).tobytes().hex())'


def _process(folder: Path, **more: str) -> subprocess.Popen[str]:
    env = {**os.environ, "NUMBA_CACHE_DIR": str(folder), "NUMBA_NUM_THREADS": "1", **more}
    return subprocess.Popen(
        [sys.executable, "-W", "default", "-c", SAY],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
    )  # fmt: skip


def one_kernel_cache(times: int, seed: int) -> Outcome:
    """Processes compile into one empty cache at once, and one of them is killed."""
    trial = Trial(
        "three processes compile into one empty cache, one is killed; a fourth starts",
        "all give the same logits; the fourth compiles nothing",
    )
    rng = random.Random(seed)
    expected = gr.load("tiny", backend="numba")([1, 2, 3]).tobytes().hex()
    for i in range(times):
        with _scratch() as folder:
            together = [_process(folder) for _ in range(3)]
            with contextlib.suppress(subprocess.TimeoutExpired):
                together[2].wait(rng.uniform(2, 20))
            together[2].kill()
            said = [process.communicate() for process in together]
            together.append(_process(folder))
            said.append(together[3].communicate())
            wrong = [said[n][1][-300:] for n in (0, 1, 3) if said[n][0].strip() != expected]
            if "compiling" in said[3][1]:
                wrong.append("the last process compiled again")
            trial.failures += [f"run {i}: {message}" for message in wrong[:1]]
    return trial.ended(times)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """An empty folder that is not writable, even for root; needs root on Linux."""
    place = folder / "home"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def read_only_home(times: int, seed: int) -> Outcome:
    """No cache can be written: the logits are the same, and there is one warning."""
    trial = Trial(
        "a forward pass; home and kernel cache are mounted read-only",
        "the same logits, and one warning that names the folder",
    )
    expected = gr.load("tiny", backend="numba")([1, 2, 3]).tobytes().hex()
    with _scratch() as folder, read_only(folder) as home:
        for i in range(times):
            out, err = _process(home, HOME=str(home)).communicate()
            if out.strip() != expected or err.count("cannot write to the kernel cache") != 1:
                trial.failures.append(f"run {i}: {err[-300:]}")
    return trial.ended(times)


def clock_jumps(times: int, seed: int) -> Outcome:
    """The clock jumps by up to ten years: results and this version's kernel cache are unchanged."""
    trial = Trial(
        "the clock jumps by up to ten years, forwards or backwards, before a trace is written",
        "the same numbers; the kernels in use are kept",
    )
    rng = random.Random(seed)
    real, year = time.time, 365 * 86400
    expected = model()(TOKENS[:2]).tobytes()
    with _scratch() as folder:
        for _ in range(times):
            own, other = folder / "kernels-0123456789ab", folder / "kernels-ba9876543210"
            for place in (own, other):
                place.mkdir(exist_ok=True)
            jump = rng.uniform(-10 * year, 10 * year)
            time.time = lambda jump=jump: real() + jump
            try:
                warmup.drop_unused(own)
                target = folder / "a.trace"
                written = gr.trace(model(), TOKENS[:2], path=target)
                if written["logits"].tobytes() != expected or not own.is_dir():
                    trial.failures.append(f"a jump by {jump:.0f} s")
                if other.is_dir() != (jump <= warmup.UNUSED):
                    trial.failures.append(f"a jump by {jump:.0f} s: the other version's kernels")
            except OSError as error:
                trial.failures.append(f"a jump by {jump:.0f} s: {error}")
            finally:
                time.time = real
    return trial.ended(
        times,
        note="a jump forwards by more than 30 days removes the compiled kernels of other versions "
        "of the package, which would be compiled again; timeouts use a monotonic clock",
    )


# --- threads ---


def many_threads(minutes: float, seed: int, count: int = 8) -> Outcome:
    """Threads generate on one model, each with its own cache: the same tokens as one thread."""
    trial = Trial(
        f"{count} threads generate on one model, each with its own cache, for {minutes:g} minutes",
        "tokens and log-probabilities are bit-identical to those of one thread alone",
    )
    done = [0] * count
    shared = gr.load("tiny", backend="numba")
    prompts = [[60 + 7 * n + k for k in range(5 + 3 * n)] for n in range(count)]

    def run(n: int, i: int) -> list[tuple[int, float]]:
        sampled = {"temperature": 0.0} if i % 2 else {"temperature": 1.0, "seed": n}
        tokens = gr.generate(shared, prompts[n], 24, stop_tokens=(), **sampled)
        return [(int(token), token.logprob) for token in tokens]

    alone = {(n, i): run(n, i) for n in range(count) for i in (0, 1)}
    end = time.perf_counter() + 60 * minutes

    def work(n: int) -> None:
        i = n
        while time.perf_counter() < end or done[n] < 2:
            i += 1
            try:
                if run(n, i % 2) != alone[n, i % 2]:
                    trial.failures.append(f"thread {n}, run {done[n]}")
            except Exception as error:
                trial.failures.append(f"thread {n}: {type(error).__name__}: {error}")
                return
            done[n] += 1

    threads = [threading.Thread(target=work, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = sum(done)
    return trial.ended(times)


def needs_mount(act: Callable[[], Outcome]) -> Outcome | None:
    """The outcome; None if no file system can be mounted."""
    try:
        return act()
    except (FileNotFoundError, PermissionError, subprocess.CalledProcessError) as error:
        if getattr(error, "errno", errno.EPERM) not in (errno.EPERM, errno.ENOENT, errno.EACCES):
            raise
        print(f"not tried: {error}", flush=True)
        return None
