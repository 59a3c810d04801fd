"""What only some systems have, taken away: the same results without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_ref.checkpoint.reader import SafetensorsFile
from tests.support.checkpoint_files import write_hf

WORK = """
import mmap, os, sys
import numpy, numba, safetensors, tiktoken  # each has its own ways on every system
import numba.np.ufunc.parallel

if sys.argv[2] == "elsewhere":
    for name in [name for name in dir(mmap) if name.startswith("MADV")]:
        delattr(mmap, name)
    del os.sched_getaffinity, os.register_at_fork, os.fork
    sys.platform = "win32"
import gptoss_ref as gr

model = gr.load("tiny")
tokens = list(gr.generate(model, [60, 61, 62], 5, stop_tokens=()))
trace = gr.trace(model, [60, 61], path=sys.argv[1] + "/a.trace")
gr.convert("tiny", sys.argv[1] + "/new", experts="bfloat16")
gr.load(sys.argv[1] + "/new").checkpoint.shards.release()
print([(int(token), token.logprob) for token in tokens], trace["logits"].tobytes().hex())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere these are absent already")
def test_without_what_only_linux_has(tmp_path: Path) -> None:
    """No madvise, no large pages, no fork, no CPU affinity: the same tokens, traces and folders."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    said = []
    for system in ("here", "elsewhere"):
        (tmp_path / system).mkdir()
        run = subprocess.run(
            [sys.executable, "-c", WORK, str(tmp_path / system), system],
            capture_output=True,
            text=True,
            env={**os.environ, "LOCALAPPDATA": cache},  # the kernels are those of here
        )
        assert run.returncode == 0, run.stderr
        said.append(run.stdout)
    assert said[0] == said[1]
    for name in ("a.trace", "new/model.safetensors", "new/config.json"):
        here, elsewhere = (tmp_path / system / name for system in ("here", "elsewhere"))
        assert here.read_bytes() == elsewhere.read_bytes()


def test_a_kernel_that_refuses_large_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MADV_HUGEPAGE may be defined where the running system was built without them."""
    import mmap

    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12345, raising=False)
    path = write_hf(tmp_path / "a") / "model.safetensors"
    file = SafetensorsFile(path)
    assert file.array("model.norm.weight").shape == (64,)
