"""Run every script of this folder in an environment with its packages, and write docs/wild.md.

    python examples/wild/run.py [NAME ...] [--environments DIR] [--sources DIR]

The first run creates the environments with venv and pip under the first DIR; scripts with the same
packages share one, and changed packages rebuild it. Implementations that are not packages are git
checkouts under the second DIR. If a script was not run or failed, its row keeps the last result and
says so; its output is in NAME.log under the first DIR. `nox -s wild` calls this. It downloads
several gigabytes and is not part of CI.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.json"
PAGE = ROOT / "docs/wild.md"
OWN = ("numba", "safetensors", "tiktoken")
TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Environment:
    """What pip does, line by line; what gptoss_ref needs comes with the first."""

    packages: tuple[str, ...]
    then: tuple[str, ...] = ()

    @property
    def lines(self) -> list[list[str]]:
        return [["install", *self.packages, *OWN], *(line.split() for line in self.then)]


ENVIRONMENTS = {
    "transformers": Environment(
        (
            TORCH,
            "transformers==5.24.0",
            "accelerate",
            "onnxruntime-genai==0.18.0",
            "onnx",
            "onnx_ir",
        )
    ),
    "transformers-4.55": Environment((TORCH, "transformers==4.55.0")),
    "mlx": Environment(("mlx-cpu==0.32.4", "mlx-lm==0.32.2"), ("install --no-deps mlx==0.32.4",)),
    "keras": Environment(("keras-hub==0.32.0", "jax==0.10.2")),
    "jax": Environment(("jax==0.10.2", "flax==0.12.8", "tqdm")),
    "transformer-lens": Environment((TORCH, "transformer-lens==4.3.0")),
    "automodel": Environment((TORCH, "nemo-automodel==0.7.0")),
    "torchtitan": Environment((TORCH, "torchtitan==0.3.0", "triton")),
    "openvino": Environment(
        (TORCH, "optimum-intel[openvino]==2.2.0"), ("uninstall -y torchvision",)
    ),
    "llama": Environment(("xllamacpp==2026.10.11549", "ik-llama-cpp-python==0.1.5", "gguf")),
}


@dataclass(frozen=True)
class Entry:
    """One implementation.

    Attributes:
        title: as the page names it.
        script: in this folder.
        environment: in which it runs.
        source: a repository to check out, and the commit that was read.
        truth: where in their code what is said is true.
    """

    title: str
    script: str
    environment: str
    source: tuple[str, str] | None = None
    truth: str = "–"


ENTRIES = (
    Entry("transformers", "transformers_now.py", "transformers"),
    Entry("transformers: generate, torch.compile", "transformers_generate.py", "transformers"),
    Entry("transformers 4.55", "transformers_455.py", "transformers-4.55"),
    Entry(
        "OpenAI's torch reference",
        "openai_torch.py",
        "transformers",
        ("openai/gpt-oss", "7b58334"),
    ),
    Entry(
        "gpt-oss-cpp's torch model",
        "gpt_oss_cpp.py",
        "transformers",
        ("AaronWang04/gpt-oss-cpp", "1a0e022"),
    ),
    Entry(
        "mlx-lm",
        "mlx_lm_cpu.py",
        "mlx",
        truth="YarnRoPE in mlx_lm/models/rope_utils.py rounds the range of the ramp and does not "
        "read `truncate`; as loaded, in bfloat16: the fallback of rms_norm in mlx/fast.cpp rounds "
        "before it multiplies by the scale",
    ),
    Entry(
        "keras-hub, JAX",
        "keras_hub_jax.py",
        "keras",
        truth="gpt_oss_backbone.py 147 (which layers have a window), gpt_oss_attention.py (its "
        "width)",
    ),
    Entry(
        "TransformerLens",
        "transformer_lens_bridge.py",
        "transformer-lens",
        truth='compatibility mode: fold_value_biases in weight_processing.py, "because attention '
        'patterns add up to 1", which they do not where a sink takes a share',
    ),
    Entry("NeMo Automodel", "automodel.py", "automodel"),
    Entry(
        "torchtitan",
        "torchtitan_flex.py",
        "torchtitan",
        truth="its state_dict_adapter.py drops the tensors of experts: it has no suffixes in their "
        "names (`mlp1_weight`, not `mlp1_weight_EGD`); the script adds them",
    ),
    Entry("onnxruntime-genai", "ort_genai.py", "transformers"),
    Entry("OpenVINO, by optimum-intel", "openvino_optimum.py", "openvino"),
    Entry(
        "llama.cpp, server of xllamacpp",
        "llama_server.py",
        "llama",
        truth="ggml_rope_yarn_corr_dims in ggml/src/ggml.c floors and ceils the range of the ramp",
    ),
    Entry(
        "ik_llama.cpp, in Python",
        "ik_llama.py",
        "llama",
        truth="ggml_rope_yarn_corr_dims of its library, called: 8 and 18 where the released models "
        "have 8.09 and 17.40",
    ),
    Entry(
        "gpt-oss-jax, flax",
        "gpt_oss_jax.py",
        "jax",
        ("atsentia/gpt-oss-jax", "3af7097"),
        truth="sdpa in gpt_oss/jax/model.py, 512: `q_positions - kv_positions > sliding_window`",
    ),
)


def environment(name: str, folder: Path) -> Path:
    """The Python of an environment, made if it is not there yet or had other packages."""
    home, lines = folder / name, ENVIRONMENTS[name].lines
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    made = home / "packages.json"
    if not made.exists() or json.loads(made.read_text()) != lines:
        venv.create(home, with_pip=True, clear=True)
        for line in lines:
            subprocess.run([str(python), "-m", "pip", *line, "-q"], check=True)
        made.write_text(json.dumps(lines))
    return python


def checkout(source: tuple[str, str], folder: Path) -> Path:
    """A folder with a repository as it was at a commit."""
    name, commit = source
    home = folder / name.replace("/", "+")
    if not home.exists():
        url = f"https://github.com/{name}"
        subprocess.run(["git", "clone", "-q", "--filter=blob:none", url, str(home)], check=True)
        subprocess.run(["git", "-C", str(home), "checkout", "-q", commit], check=True)
    return home


def run(entry: Entry, folder: Path, sources: Path) -> list[dict[str, Any]]:
    """What the script prints. RuntimeError, with the last line of its error, if it fails."""
    python = environment(entry.environment, folder)
    extra = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    if entry.source is not None:
        home = checkout(entry.source, sources)
        extra |= {"WILD_SOURCE": str(home), "WILD_VERSION": entry.source[1]}
    log = folder / f"{Path(entry.script).stem}.log"
    with log.open("w") as written:
        done = subprocess.run(
            [str(python), entry.script],
            cwd=HERE,
            env={**os.environ, **extra},
            stdout=written,
            stderr=subprocess.STDOUT,
            timeout=3600,
        )
    said = log.read_text(errors="replace").splitlines()
    lines = [json.loads(line[5:]) for line in said if line.startswith("WILD ")]
    if done.returncode or not lines:
        raise RuntimeError(f"{(said or ['nothing printed'])[-1]} (see {log})")
    return lines


def verdict(line: dict[str, Any]) -> str:
    """One run in words."""
    if "refused" in line:
        return f'refused ("{line["refused"]}")'
    if line["ok"]:
        judged = line["judged"]
        return f"right ({judged} tap point{'s' * (judged != 1)})"
    words = [f"`{name}`" for name in line["named"]]
    words += [f"{tap}: wrong, no name" for tap in line["unnamed"]]
    return ", ".join(words) or "wrong, no name"


def page(results: dict[str, dict[str, Any]]) -> str:
    """docs/wild.md; a row that is older than the newest one says so."""
    rows, newest = [], max((result.get("date", "") for result in results.values()), default="")
    for entry in ENTRIES:
        result = results.get(entry.script, {})
        lines, when = result.get("lines", []), result.get("date", "–")
        said = [f"{line['form']}: {verdict(line)}" for line in lines]
        if not lines:
            said = ["not run"]
        elif when != newest or "failed" in result:
            when += "<br>not run again"
        if "failed" in result:
            said.append(f"{result['failed']['date']}: failed (`{result['failed']['error']}`)")
        version = lines[0]["version"] if lines else "–"
        cells = entry.title, version, when, "<br>".join(said), entry.truth, f"`{entry.script}`"
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*INTRO, *rows, "", *OUTRO, ""])


INTRO = (
    "# Implementations judged",
    "",
    "Public implementations of gpt-oss and the verdicts of `diagnose` on their numbers. Each ran",
    "on a CPU, with the bundled checkpoint or, if the released constants are built in, with a",
    "small random one. `python examples/wild/run.py` writes this page; no verdict is written by",
    "hand.",
    "",
    "| implementation | version | run on | verdict | place in the code | script |",
    "|---|---|---|---|---|---|",
)
OUTRO = (
    "Bugs have their names in the [catalogue](mutants.md). Right means that rounding explains",
    "every tap point that could be judged; with logits alone that is one. Refused is the",
    "implementation's own message about a choice that cannot run on a CPU. The place in the code",
    "was found by reading it.",
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
    wanted = {Path(name).stem for name in options.names}
    if unknown := wanted - {Path(entry.script).stem for entry in ENTRIES}:
        parser.error(f"no such script in {HERE}: {', '.join(sorted(unknown))}")
    for folder in (options.environments, options.sources):
        folder.mkdir(parents=True, exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    today, failures = datetime.date.today().isoformat(), 0
    for entry in ENTRIES:
        if wanted and Path(entry.script).stem not in wanted:
            continue
        start = time.perf_counter()
        try:
            lines = run(entry, options.environments.resolve(), options.sources.resolve())
            results[entry.script] = {"date": today, "lines": lines}
            said = "; ".join(f"{line['form']}: {verdict(line)}" for line in lines)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            failures += 1
            said = f"failed: {error}"
            results.setdefault(entry.script, {})["failed"] = {"date": today, "error": str(error)}
        print(f"{entry.title} ({time.perf_counter() - start:.0f} s): {said}", flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
