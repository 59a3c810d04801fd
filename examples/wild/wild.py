"""What the scripts of this folder share: model, prompt, and the verdict as one line of JSON.

Each script runs one implementation with the bundled checkpoint, or with a small random one,
and has it diagnosed. `run.py` runs them all and writes docs/wild.md.
"""

from __future__ import annotations

import atexit
import dataclasses
import importlib.metadata
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))
sys.path.append(str(Path(__file__).parents[2] / "benches"))

import numpy as np

import gptoss_ref as gr

MODEL = gr.load("tiny", backend="numpy")
TINY = Path(MODEL.path)
TOKENS = MODEL.tokenizer.encode(
    "Sort these numbers: 41, 7, 88, 23, 5, 67, 12. Then add the first and the last of them."
)
TWICE = MODEL.config.sliding_window * 2
assert len(TOKENS) > TWICE, "a prompt that a window cannot hold"

_FOLDER = Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, _FOLDER, True)


def converted(source: str | Path = "tiny", **how: Any) -> Path:
    """A checkpoint, the bundled one or a folder, in another layout or with experts in bfloat16."""
    folder = _FOLDER / "-".join(how.values())
    gr.convert(source, folder, **how)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if not (folder / name).exists():
            shutil.copy(TINY / name, folder)
    return folder


def random(**sizes: Any) -> gr.Model:
    """A random checkpoint with the released constants; `.path` is its folder."""
    from make_random_20b import layer_tensors, outer_tensors, write_shard

    small = {
        "num_hidden_layers": 4,
        "hidden_size": 128,
        "intermediate_size": 96,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_experts": 8,
        "experts_per_token": 3,
        "vocab_size": MODEL.config.vocab_size,
        "sliding_window": 48,
        "eos_token_ids": MODEL.config.eos_token_ids,
        "pad_token_id": MODEL.config.pad_token_id,
    }
    config = dataclasses.replace(gr.GPT_OSS_20B, **{**small, **sizes})
    folder = _FOLDER / "random"
    folder.mkdir()
    tensors = [t for n in range(config.num_hidden_layers) for t in layer_tensors(config, n)]
    tensors = [
        t._replace(std=t.std and 2 / np.sqrt(t.shape[-1])) if "weight" in t.name else t
        for t in [*tensors, *outer_tensors(config)]
    ]
    write_shard(folder / "model.safetensors", tensors, np.random.default_rng(0))
    (folder / "config.json").write_text(json.dumps(config.to_json("hf")))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(TINY / name, folder)
    return gr.load(folder, backend="numpy")


def show(package: str, form: str, seen: Any, model: gr.Model = MODEL, **how: Any) -> None:
    """Diagnose, and print one line of JSON.

    Args:
        package: whose version is printed, or the version itself after a space.
        form: dtype and other choices, in words.
        seen: a Trace, an observation, or arrays by name.
    """
    diagnosis = gr.diagnose(model, seen, **how)
    said = {
        "ok": diagnosis.ok,
        "named": [cause.name for cause in diagnosis.causes],
        "unnamed": [unexplained.tap for unexplained in diagnosis.unexplained],
        "judged": diagnosis.judged,
    }
    _line(package, form, said)


def refused(package: str, form: str, error: Exception) -> None:
    """Print what an implementation says of a choice that it cannot run on a CPU."""
    sentence, *_ = str(error).splitlines() or [type(error).__name__]
    _line(package, form, {"refused": sentence.split(". ")[0].rstrip(".")})


def _line(package: str, form: str, said: dict[str, Any]) -> None:
    name, _, version = package.partition(" ")
    version = version or importlib.metadata.version(name)
    print("WILD " + json.dumps({"version": version, "form": form, **said}), flush=True)
