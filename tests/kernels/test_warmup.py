"""Warm-up and the doctor's data."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from gptoss_ref.cli.parser import build_parser
from gptoss_ref.config import GPT_OSS_20B, GPT_OSS_120B
from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.runtime.doctor import LEAST_MEGABYTES, bandwidth, bytes_per_token, doctor
from gptoss_ref.kernels.runtime.isa import available_paths
from gptoss_ref.kernels.runtime.threads import available_threads, current_threads
from gptoss_ref.kernels.runtime.warmup import drop_unused
from tests.support.kernel_cases import COMPILED_ONLY
from tests.support.processes import run_python, standard_error


def test_bytes_of_one_token() -> None:
    """llama.cpp's figure for gpt-oss-20b in bfloat16 and MXFP4 is 3.7 GB a token."""
    assert bytes_per_token(GPT_OSS_20B) == pytest.approx(3.7e9, rel=0.01)
    extra_layers = 36 / 24 * (bytes_per_token(GPT_OSS_20B) - 2 * 201088 * 2880)
    without_router = bytes_per_token(GPT_OSS_120B) - 2 * 201088 * 2880
    assert without_router == pytest.approx(extra_layers, rel=0.01)


@COMPILED_ONLY
def test_doctor_gives_plain_values() -> None:
    report = doctor({"20b": GPT_OSS_20B}, megabytes=64, seconds=0.01)
    assert json.loads(json.dumps(report)) == report
    assert report["instruction_path"] == available_paths()[0]
    assert report["threads"] == current_threads()
    assert report["threading_layer"] in ("omp", "tbb", "workqueue")
    rates = report["read_gigabytes_per_second"]
    assert min(rates.values()) > 0
    tokens = report["predicted_tokens_per_second"]["20b"]
    assert tokens == pytest.approx(1e9 * max(rates.values()) / bytes_per_token(GPT_OSS_20B))


@COMPILED_ONLY
def test_warmup_leaves_nothing_to_compile() -> None:
    """After it, passes of one token and of several, with a checkpoint's types, compile nothing."""
    code = """
import numpy as np
from numba.core import compiler
from gptoss_ref import kernels
from gptoss_ref.kernels.runtime.warmup import STEPS, warmup
seen = []
warmup(lambda name, done, steps: seen.append((done, steps)))
compiler.compile_extra = None  # compiling would now fail
rng = np.random.default_rng(0)
bits = lambda *shape: np.full(shape, 0x3F80, np.uint16)
for tokens in (1, 5):
    x = rng.standard_normal((tokens, 96), np.float32)
    kernels.linear(x, bits(40, 96), bits(40))
    kernels.linear(x, bits(40, 96))
    kernels.rmsnorm(x, bits(96))
print(seen == [(i, len(STEPS)) for i in range(len(STEPS) + 1)])
"""
    assert run_python(code) == "True"


@COMPILED_ONLY
def test_a_model_needs_the_kernels_of_its_width_only(tmp_path: Path) -> None:
    code = """
from gptoss_ref.kernels.runtime import warmup
warmup.STEPS = [(name, lambda name=name: print(name), sizes) for name, _, sizes in warmup.STEPS]
warmup.warmup(width=511)
print(*(warmup.is_warm(size) for size in (1, 511, 512, None)))
warmup.warmup(width=2880)
print(*(warmup.is_warm(size) for size in (1, 511, 512, None)))
"""
    lines = run_python(code, NUMBA_CACHE_DIR=str(tmp_path)).splitlines()
    middle = lines.index("True True False False")
    small, large = lines[:middle], lines[middle + 1 : -1]
    assert lines[-1] == "True True True True"
    assert set(small) - set(large) == {
        "experts of a small model",
        "blocks of a small model, one token",
    }
    assert set(large) - set(small) == {
        "experts, one token",
        "experts, several tokens",
        "blocks, one token",
    }


@COMPILED_ONLY
def test_what_one_thread_compiled_is_not_warm_for_several(tmp_path: Path) -> None:
    """On one core the kernels that start threads are left out."""
    code = """
from gptoss_ref.kernels.runtime import warmup
warmup.STEPS = warmup.STEPS[:1]
warmup.warmup()
print(warmup.is_warm())
"""
    cache = {"NUMBA_CACHE_DIR": str(tmp_path)}
    assert run_python(code, NUMBA_NUM_THREADS="1", **cache) == "True"
    code = "from gptoss_ref.kernels import warmup; print(warmup.is_warm())"
    assert run_python(code, NUMBA_NUM_THREADS="1", **cache) == "True"
    if available_threads() > 1:
        assert run_python(code, **cache) == "False"


FIRST_CALLS = """
import sys, warnings
import numpy as np
from gptoss_ref import kernels
warnings.simplefilter("ignore")
for size in (3, 5):
    kernels.rmsnorm(np.ones((1, size), np.float32), np.ones(size, np.float32))
    kernels.swiglu(np.ones((1, 2), np.float32))
"""


@COMPILED_ONLY
def test_the_first_call_from_python_says_why_it_takes_long(tmp_path: Path) -> None:
    """One line a process, and only where something compiles."""
    cache = {"NUMBA_CACHE_DIR": str(tmp_path)}
    line = "gptoss_ref: compiling kernels, once (ahead of time: gptoss-ref warmup)\n"
    assert standard_error(FIRST_CALLS, **cache) == line
    assert standard_error(FIRST_CALLS, **cache) == ""
    assert standard_error(FIRST_CALLS, NUMBA_DISABLE_JIT="1", **cache) == ""


@COMPILED_ONLY
def test_where_nothing_can_be_kept_it_is_not_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    line = "gptoss_ref: compiling kernels (ahead of time: gptoss-ref warmup)\n"
    assert standard_error(FIRST_CALLS, NUMBA_CACHE_DIR=str(tmp_path / "file" / "below")) == line


@COMPILED_ONLY
@pytest.mark.parametrize("before", ["sys.stderr = None", "sys.stderr.close()"])
def test_nothing_is_said_where_nobody_listens(before: str, tmp_path: Path) -> None:
    code = f"import sys; {before}{FIRST_CALLS}print('computed')"
    assert run_python(code, NUMBA_CACHE_DIR=str(tmp_path)) == "computed"


@COMPILED_ONLY
def test_who_shows_progress_says_it_alone(tmp_path: Path) -> None:
    """As the command line does, with a spinner."""
    code = """
from gptoss_ref.kernels.runtime import warmup
warmup.STEPS = warmup.STEPS[:1]
warmup.warmup(lambda *_: None)
for size in warmup.SIZES:
    (warmup.cache_folder() / warmup.mark(size)).unlink()
"""
    code += FIRST_CALLS
    assert standard_error(code, NUMBA_CACHE_DIR=str(tmp_path)) == ""


@COMPILED_ONLY
def test_warm_kernels_say_nothing_about_one_of_other_types(tmp_path: Path) -> None:
    code = """
from gptoss_ref.kernels.runtime import warmup
import numpy as np
for size in warmup.SIZES:
    (warmup.cache_folder() / warmup.mark(size)).touch()
warmup.linear(np.ones((1, 3), np.float32), np.ones((2, 3), np.float32))
"""
    assert standard_error(code, NUMBA_CACHE_DIR=str(tmp_path)) == ""


def test_folders_of_other_versions_go_when_nobody_uses_them(tmp_path: Path) -> None:
    def folder(name: str, days: float) -> Path:
        path = tmp_path / name
        (path / "kernels_1").mkdir(parents=True)
        (path / "kernels_1" / "f.nbc").write_bytes(b"code")
        then = time.time() - days * 86400
        os.utime(path, (then, then))
        return path

    ours = folder("kernels-0123456789ab", 90)
    gone = [folder("kernels-00000000000a", 31), folder("kernels-ffffffffffff", 4000)]
    kept = [
        ours,
        folder("kernels-00000000000b", 29),
        folder("kernels-00000000000c", -5),
        folder("kernels-0123456789abc", 90),
        folder("kernels-0123456789AB", 90),
        folder("kernels-mine", 90),
        folder("mykernels-00000000000d", 90),
        folder("elsewhere", 90),
    ]
    link = tmp_path / "kernels-00000000000e"
    link.symlink_to(tmp_path / "elsewhere")
    (file := tmp_path / "kernels-00000000000f").write_text("a file")
    for path in (link, file):
        os.utime(path, (0, 0), follow_symlinks=False)
    drop_unused(ours)
    assert not any(path.exists() for path in gone)
    assert all((path / "kernels_1" / "f.nbc").exists() for path in kept)
    assert link.is_symlink()
    assert file.exists()
    drop_unused(tmp_path / "nowhere" / ours.name)


def test_a_folder_that_cannot_be_removed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And another that goes at the same time is none to stumble over."""
    for n in range(3):
        path = tmp_path / f"kernels-00000000000{n}"
        path.mkdir()
        os.utime(path, (0, 0))
    removed: list[str] = []

    def remove(path: Path) -> None:
        removed.append(path.name)
        if len(removed) == 1:
            raise PermissionError(13, "somebody else's", str(path))
        path.rmdir()
        if len(removed) == 2:
            raise FileNotFoundError(2, "another process was faster", str(path))

    monkeypatch.setattr(shutil, "rmtree", remove)
    drop_unused(tmp_path / "kernels-0123456789ab")
    assert len(removed) == 3
    assert [path.name for path in tmp_path.iterdir()] == removed[:1]


@COMPILED_ONLY
def test_a_process_that_uses_a_folder_dates_it_and_warming_drops_the_others(tmp_path: Path) -> None:
    old = tmp_path / "kernels-00000000000a"
    old.mkdir()
    os.utime(old, (0, 0))
    code = """
import os, time
from gptoss_ref.kernels.runtime import jit as _jit
from gptoss_ref.kernels.runtime import warmup
folder = warmup.cache_folder()
os.utime(folder, (0, 0))
_jit.cache_folder.cache_clear()
warmup.cache_folder()
warmup.STEPS = ()
print(time.time() - folder.stat().st_mtime < 600)
for _ in range(2):
    warmup.warmup()
    print(sorted(path.name for path in folder.parent.iterdir()) == [folder.name])
"""
    assert run_python(code, NUMBA_CACHE_DIR=str(tmp_path)).split() == 3 * ["True"]


def test_doctor_needs_compiled_kernels() -> None:
    code = """
from gptoss_ref.cli import main
print(main(["doctor", "--megabytes", "64"]))
"""
    assert run_python(code, NUMBA_DISABLE_JIT="1") == "2"


@COMPILED_ONLY
def test_doctor_does_not_measure_the_caches() -> None:
    """The command line refuses the same, before anything compiles."""
    for megabytes in (-1, 0, LEAST_MEGABYTES - 1):
        with pytest.raises(GptOssError, match=f"expected {LEAST_MEGABYTES} or more"):
            doctor({}, megabytes=megabytes)
        with pytest.raises(GptOssError, match=f"expected an integer of {LEAST_MEGABYTES} or more"):
            build_parser().parse_args(["doctor", "--megabytes", str(megabytes)])
    least = str(LEAST_MEGABYTES)
    assert build_parser().parse_args(["doctor", "--megabytes", least]).megabytes == LEAST_MEGABYTES


@COMPILED_ONLY
def test_doctor_without_the_memory() -> None:
    for megabytes in (100_000_000_000, 1 << 60):
        with pytest.raises(GptOssError, match="no memory"):
            bandwidth(megabytes)
