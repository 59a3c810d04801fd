"""Run every script of this folder in a separate environment, and write docs/wild.md.

    python examples/wild/run.py [NAME ...] [--environments DIR] [--sources DIR]

The first run creates the environments with venv and pip under the first DIR. Implementations that
are not packages are checkouts under the second DIR. If a script was not run or failed, its row
keeps the last result and says so. `nox -s wild` calls this. It downloads several gigabytes and is
not part of CI.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.json"
PAGE = ROOT / "docs/wild.md"
OWN = ("numba", "safetensors", "tiktoken")


@dataclass(frozen=True)
class Entry:
    """One implementation.

    Attributes:
        title: as the page names it.
        script: in this folder.
        packages: what its environment holds besides what gptoss_ref needs.
        source: a repository to check out, and the commit that was read.
        truth: where in their code what is said is true.
        after: further arguments of pip, one line each, once the packages are there.
    """

    title: str
    script: str
    packages: tuple[str, ...]
    source: tuple[str, str] | None = None
    truth: str = "–"
    after: tuple[tuple[str, ...], ...] = ()


TORCH = "torch==2.13.0"
ENTRIES = (
    Entry("transformers", "transformers_now.py", (TORCH, "transformers==5.24.0", "accelerate")),
    Entry(
        "transformers: generate, torch.compile",
        "transformers_generate.py",
        (TORCH, "transformers==5.24.0", "accelerate"),
    ),
    Entry("transformers 4.55", "transformers_455.py", (TORCH, "transformers==4.55.0")),
    Entry("OpenAI's torch reference", "openai_torch.py", (TORCH,), ("openai/gpt-oss", "7b58334")),
    Entry(
        "gpt-oss-cpp's torch model",
        "gpt_oss_cpp.py",
        (TORCH,),
        ("AaronWang04/gpt-oss-cpp", "1a0e022"),
    ),
    Entry(
        "mlx-lm",
        "mlx_lm_cpu.py",
        ("mlx-cpu==0.32.4", "mlx-lm==0.32.2"),
        truth="YarnRoPE in mlx_lm/models/rope_utils.py rounds the range of the ramp and does not "
        "read `truncate`",
        after=(("--no-deps", "mlx==0.32.4"),),
    ),
    Entry(
        "keras-hub, JAX",
        "keras_hub_jax.py",
        ("keras-hub==0.32.0", "jax"),
        truth="gpt_oss_backbone.py 147 (which layers have a window), gpt_oss_attention.py (its "
        "width)",
    ),
    Entry(
        "TransformerLens",
        "transformer_lens_bridge.py",
        (TORCH, "transformer-lens==4.3.0"),
        truth="compatibility mode: fold_value_biases takes the rows of attention to sum to one, "
        "which they do not where a sink takes a share",
    ),
    Entry("NeMo Automodel, flex", "automodel.py", (TORCH, "nemo-automodel==0.7.0")),
    Entry(
        "onnxruntime-genai",
        "ort_genai.py",
        (
            TORCH,
            "onnxruntime-genai==0.18.0",
            "onnx",
            "onnx_ir",
            "transformers==5.24.0",
            "accelerate",
        ),
    ),
    Entry(
        "OpenVINO, by optimum-intel",
        "openvino_optimum.py",
        (TORCH, "optimum-intel[openvino]==2.2.0"),
        after=(("torchvision",),),
    ),
    Entry(
        "llama.cpp, server of xllamacpp",
        "llama_server.py",
        ("xllamacpp==2026.10.11549", "gguf"),
        truth="ggml_rope_yarn_corr_dims in ggml/src/ggml.c floors and ceils the range of the ramp",
    ),
    Entry(
        "gpt-oss-jax, flax",
        "gpt_oss_jax.py",
        ("jax", "flax", "tqdm"),
        ("atsentia/gpt-oss-jax", "3af7097"),
        truth="sdpa in gpt_oss/jax/model.py, 512: `q_positions - kv_positions > sliding_window`",
    ),
)


def environment(entry: Entry, folder: Path) -> Path:
    """The Python of an entry's environment, made if it is not there yet."""
    home = folder / Path(entry.script).stem
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (home / "ready").exists():
        venv.create(home, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip"]
        subprocess.run([*pip, "install", "-q", *entry.packages, *OWN], check=True)
        for arguments in entry.after:
            how = ["uninstall", "-q", "-y"] if arguments == ("torchvision",) else ["install", "-q"]
            subprocess.run([*pip, *how, *arguments], check=True)
        (home / "ready").touch()
    return python


def run(entry: Entry, python: Path, sources: Path) -> list[dict[str, object]]:
    """What the script prints. RuntimeError, with the last line of its error, if it fails."""
    extra = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    if entry.source is not None:
        name, commit = entry.source
        extra |= {"WILD_SOURCE": str(sources / name.replace("/", "+")), "WILD_VERSION": commit}
    done = subprocess.run(
        [str(python), entry.script],
        cwd=HERE,
        env={**os.environ, **extra},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    lines = [json.loads(x[5:]) for x in done.stdout.splitlines() if x.startswith("WILD ")]
    if done.returncode or not lines:
        raise RuntimeError((done.stderr.strip().splitlines() or ["nothing printed"])[-1])
    return lines


def verdict(line: dict[str, object]) -> str:
    """One run in words."""
    named, unnamed = line["named"], line["unnamed"]
    assert isinstance(named, list)
    assert isinstance(unnamed, list)
    if line["ok"]:
        judged = line["judged"]
        return f"right ({judged} tap point{'s' * (judged != 1)})"
    words = [f"`{name}`" for name in named] + [f"{tap}: wrong, no name" for tap in unnamed[:2]]
    return ", ".join(words) or "wrong, no name"


def page(results: dict[str, dict[str, object]], today: str) -> str:
    """docs/wild.md."""
    rows = []
    for entry in ENTRIES:
        result = results.get(entry.script)
        if result is None:
            rows.append(f"| {entry.title} | – | – | not run | {entry.truth} | `{entry.script}` |")
            continue
        lines = result["lines"]
        assert isinstance(lines, list)
        said = "<br>".join(f"{line['form']}: {verdict(line)}" for line in lines)
        when = str(result["date"])
        if result.get("failed") or when != today:
            when += "<br>not run again"
        rows.append(
            f"| {entry.title} | {lines[0]['version']} | {when} | {said} | {entry.truth} | "
            f"`{entry.script}` |"
        )
    return "\n".join([*INTRO, *rows, "", *OUTRO, ""])


INTRO = (
    "# Implementations judged",
    "",
    "Public implementations of gpt-oss and the verdicts of `diagnose` on their numbers. Each ran",
    "with the bundled checkpoint or, if the released constants are built in, with a small random",
    "one. `python examples/wild/run.py` writes this page; no verdict is written by hand.",
    "",
    "| implementation | version | run on | verdict | place in the code | script |",
    "|---|---|---|---|---|---|",
)
OUTRO = (
    "Bugs have their names in the [catalogue](mutants.md). Right means that rounding explains",
    "every tap point that could be judged. The place in the code was found by reading it.",
    "",
    "To repeat one row: `python examples/wild/run.py SCRIPT`, or the script alone in an",
    "environment with the implementation and this package. [Bringing your own",
    "numbers](adapters.md) describes the adapters.",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="scripts to run; default: all")
    parser.add_argument("--environments", type=Path, default=ROOT / ".wild")
    parser.add_argument("--sources", type=Path, default=ROOT / ".wild/sources")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    today = datetime.date.today().isoformat()
    failures = 0
    for entry in ENTRIES:
        wanted = [Path(name).stem for name in options.names]
        if wanted and Path(entry.script).stem not in wanted:
            continue
        try:
            lines = run(entry, environment(entry, options.environments), options.sources)
            results[entry.script] = {"date": today, "lines": lines}
            print(f"{entry.title}: {'; '.join(verdict(line) for line in lines)}", flush=True)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            failures += 1
            results.get(entry.script, {})["failed"] = str(error)
            print(f"{entry.title}: not run: {error}", file=sys.stderr, flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results, today))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
