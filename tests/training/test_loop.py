"""The loop: a resumed run has the same bits, parts weigh targets alike, nothing is half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gptoss_ref as gr
from gptoss_ref.checkpoint.peft import CONFIG, TENSORS
from gptoss_ref.checkpoint.reader import SafetensorsFile
from gptoss_ref.errors import GptOssError
from gptoss_ref.model import Model
from gptoss_ref.training import AdamW, DataError, Example, LoRA, Recipe, evaluate, train
from gptoss_ref.training.state import STATE
from tests.support.distance import relative_l2
from tests.support.strategies import as_weights, random_arrays, small_config

CONFIGURATION = small_config(layers=2, n_kv=2, group=3, head_dim=8, experts=5, n_chosen=3,
                             d_model=32, d_ff=64, vocab=61, window=7)  # fmt: skip
LORA = LoRA(rank=2, alpha=4.0, targets=("*.attn.q_weight", "block.1.mlp.mlp?_weight"))
RECIPE = Recipe(
    steps=7,
    batch_size=4,
    accumulation=2,
    learning_rate=0.02,
    warmup=2,
    clip=0.3,
    lora=LORA,
    whole=("*.sinks", "block.0.mlp.norm_scale"),
    optimizer=AdamW(weight_decay=0.05),
    evaluate_every=3,
    seed=3,
)


def small_model(policy: str = "float32", backend: str = "numpy", **arrays: Any) -> Model:
    drawn = random_arrays(CONFIGURATION, 1, mxfp4=True)
    return Model(CONFIGURATION, as_weights(drawn), policy=policy, backend=backend)


def drawn_examples(n: int, seed: int = 0) -> list[Example]:
    """Rows of different lengths and different numbers of targets."""
    rng = np.random.default_rng(seed)
    out = []
    for number in range(n):
        tokens = rng.integers(0, CONFIGURATION.vocab_size, rng.integers(3, 20))
        mask = rng.random(len(tokens)) < 0.6
        mask[-1], mask[0] = False, True
        out.append(Example(tokens, np.append(tokens[1:], 0), mask, f"data: line {number + 1}"))
    return out


DATA, HELD_OUT = drawn_examples(9), drawn_examples(3, seed=1)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[gr.training.Run, dict[str, bytes]]:
    """Seven steps without a break, and the files."""
    folder = tmp_path_factory.mktemp("whole")
    run = train(small_model(), DATA, RECIPE, held_out=HELD_OUT, out=folder)
    return run, files_of(folder)


class Stop:
    """Interrupts a run after a record of the history."""

    def __init__(self, records: int) -> None:
        self.left = records

    def __call__(self, entry: dict[str, Any], steps: int) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_ctrl_c_in_the_last_evaluation_saves(
    whole_run: tuple[gr.training.Run, dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = [2]  # evaluations, the second of which is the last one

    def interrupted(*arguments: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    once = replace(RECIPE, evaluate_every=0)
    monkeypatch.setattr("gptoss_ref.training.loop.evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(small_model(), DATA, once, held_out=HELD_OUT, out=tmp_path)
    monkeypatch.undo()
    run = train(small_model(), DATA, once, held_out=HELD_OUT, out=tmp_path, resume=True)
    assert run.history[-2:] == whole_run[0].history[-2:]
    assert files_of(tmp_path)[TENSORS] == whole_run[1][TENSORS]


def test_an_error_on_the_way_loses_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third step fails: the first two are saved, and can be gone on from."""
    calls = []

    def failing(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:  # two parts a step
            raise GptOssError("the loss is nan: somewhere")
        return gr.backward(*arguments, **options)

    monkeypatch.setattr("gptoss_ref.training.loop.backward", failing)
    message = f"step 3, .*the loss is nan: somewhere; step 2 is saved in {tmp_path}$"
    with pytest.raises(GptOssError, match=message):
        train(small_model(), DATA, RECIPE, out=tmp_path)
    assert sorted(files_of(tmp_path)) == sorted([CONFIG, TENSORS, STATE])
    assert train(small_model(), DATA, RECIPE, out=tmp_path, resume=True).history[-1]["step"] == 7


@pytest.mark.parametrize("records", [1, 2, 3, 5, 6, 8])
def test_a_resumed_run_has_the_same_bits(
    records: int, whole_run: tuple[gr.training.Run, dict[str, bytes]], tmp_path: Path
) -> None:
    """Interrupted between steps and between an evaluation and a step, and once more on the way."""
    expected, files = whole_run
    for left in (records, 2):
        try:
            train(
                small_model(),
                DATA,
                RECIPE,
                held_out=HELD_OUT,
                out=tmp_path,
                resume=(tmp_path / STATE).exists(),
                report=Stop(left),
            )
        except KeyboardInterrupt:
            assert sorted(files_of(tmp_path)) == sorted([CONFIG, TENSORS, STATE])
    run = train(small_model(), DATA, RECIPE, held_out=HELD_OUT, out=tmp_path, resume=True)
    assert run.history == expected.history
    assert files_of(tmp_path) == files
    tokens = DATA[0].tokens
    np.testing.assert_array_equal(run.model(tokens), expected.model(tokens))


def test_what_is_recorded(whole_run: tuple[gr.training.Run, dict[str, bytes]]) -> None:
    run, _ = whole_run
    steps = [e for e in run.history if "loss" in e]
    tests = [e for e in run.history if "held_out_loss" in e]
    assert [e["step"] for e in steps] == [1, 2, 3, 4, 5, 6, 7]
    assert [e["step"] for e in tests] == [0, 3, 6, 7]
    assert steps[0]["rate"] == RECIPE.learning_rate / 2
    assert tests[0]["held_out_loss"] == evaluate(small_model(), HELD_OUT).loss
    assert tests[-1]["held_out_loss"] == evaluate(run.model, HELD_OUT).loss
    batch = [DATA[i] for i in RECIPE.batch(0, len(DATA))]
    assert steps[0]["targets"] == sum(e.count for e in batch)
    assert steps[0]["loss"] == pytest.approx(evaluate(small_model(), batch).loss, rel=1e-6)


def test_the_model_that_is_trained_stays_as_it_is() -> None:
    model = small_model()
    before = model(DATA[0].tokens)
    run = train(model, DATA, Recipe(steps=1, lora=LORA, learning_rate=0.1))
    np.testing.assert_array_equal(model(DATA[0].tokens), before)
    assert relative_l2(run.model(DATA[0].tokens), before) > 1e-3


def test_training_learns() -> None:
    """Four rows by heart: 40 steps with the kernels take nine tenths of the loss away."""
    rows = drawn_examples(4, seed=8)
    model = small_model(backend="numba")
    recipe = Recipe(
        steps=40, batch_size=4, learning_rate=0.02, lora=LoRA(targets=("*",)), schedule="constant"
    )
    run = train(model, rows, recipe)
    assert evaluate(run.model, rows).loss < 0.1 * evaluate(model, rows).loss
    assert evaluate(run.model, rows).right == 1.0


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_parts_of_a_batch_weigh_each_target_alike(parts: int) -> None:
    """In float64, where rounding is small: one step in parts is one step."""
    whole, split = (
        train(small_model("float64"), DATA, Recipe(
            steps=1, batch_size=9, accumulation=n, clip=None, lora=LORA, whole=("*.gate_bias",)
        ))
        for n in (1, parts)
    )  # fmt: skip
    for key in ("loss", "norm"):
        assert split.history[0][key] == pytest.approx(whole.history[0][key], rel=1e-12)


def test_the_gradient_of_factors_is_that_of_finite_differences() -> None:
    """Along a random direction of all factors, float64."""
    from gptoss_ref.training.parameters import Parameters

    model, example = small_model("float64"), DATA[0]
    start = Parameters.start(model, LoRA(rank=2, targets=("*",)), (), 0)
    rng = np.random.default_rng(0)
    at = start.with_arrays(
        {n: x + 0.01 * rng.normal(size=x.shape) for n, x in start.arrays.items()}
    )
    direction = {n: rng.normal(size=x.shape) for n, x in at.arrays.items()}
    sums: dict[str, np.ndarray] = {}
    gr.backward(
        at.applied(model), example.tokens, example.targets, example.mask, wrt=at.weights,
        on_weight=lambda name, d: at.add_gradient(name, d, 1.0, sums),
    )  # fmt: skip
    slope = sum(float((sums[n] * direction[n]).sum()) for n in direction)

    def loss(by: float) -> float:
        moved = at.with_arrays({n: x + by * direction[n] for n, x in at.arrays.items()})
        return evaluate(moved.applied(model), [example]).loss

    step = 1e-5
    assert slope == pytest.approx((loss(step) - loss(-step)) / (2 * step), rel=1e-6)


# --- what cannot be -----------------------------------------------------------------------------


def test_a_loss_that_is_nan_is_named() -> None:
    model = small_model()
    sick = np.full(CONFIGURATION.num_key_value_heads * 8, np.nan, np.float32)
    weights = model.weights.replaced({"block.1.attn.k_bias": sick})
    broken = Model(CONFIGURATION, weights, backend="numpy")
    with pytest.raises(GptOssError) as caught:
        train(broken, DATA[:1], Recipe(steps=1, batch_size=1, lora=LORA))
    where = "the first tap point that is not finite is block.1.attn.k, at [0, 0, 0]"
    with pytest.raises(GptOssError, match=re.escape(f"data: line 1: the loss is nan: {where}")):
        evaluate(broken, DATA)
    assert "step 1, data: line 1: the loss is nan: " in str(caught.value)
    assert where in str(caught.value)


def test_gradients_that_are_not_finite_are_named() -> None:
    """Logits of 1e37 have a finite loss. The norm of a tiny embedding divides by it: overflow."""
    model = small_model()
    named = as_weights(random_arrays(CONFIGURATION, 1), "float32").named()
    weights = model.weights.replaced(
        {
            "norm_scale": np.full(CONFIGURATION.hidden_size, 1e20, np.float32),
            "unembedding": named["unembedding"] * np.float32(1e17),
            "embedding": named["embedding"] * np.float32(1e-6),
        }
    )
    recipe = Recipe(steps=1, lora=None, whole=("embedding",))
    message = r"step 1: data: line \d+: the first gradient that is not finite is grad\.[\w.]+$"
    with pytest.raises(GptOssError, match=message):
        train(
            Model(replace(CONFIGURATION, rms_norm_eps=1e-14), weights, backend="numpy"),
            DATA,
            recipe,
        )


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(lora=LoRA(targets=("*.atn.*",))), "LoRA target '\\*.atn.\\*' matches no matrix"),
        (Recipe(lora=LoRA(targets=("*.sinks",))), "matches no matrix: expected a pattern of"),
        (Recipe(lora=None), "nothing to train: expected LoRA, or patterns of whole weights"),
        (Recipe(lora=None, whole=("sinks",)), "no weight matches 'sinks'"),
        (Recipe(lora=LORA, whole=("*.q_weight",)), "q_weight matches both the whole weights"),
    ],
)
def test_recipes_that_do_not_fit_the_model(recipe: Recipe, message: str) -> None:
    with pytest.raises(GptOssError, match=message):
        train(small_model(), DATA, recipe)


def test_settings_of_lora_that_cannot_be() -> None:
    with pytest.raises(GptOssError, match="the rank of LoRA is 0: expected an integer of 1 or mo"):
        LoRA(rank=0)
    with pytest.raises(GptOssError, match="alpha of LoRA is -1: expected a number above 0"):
        LoRA(alpha=-1)


ROW = DATA[0]


@pytest.mark.parametrize("held_out", [False, True], ids=["data", "held out"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": ROW.mask & False}, "no position has a loss: the mask"),
        ({"mask": ROW.mask[1:]}, r"mask has shape \(\d+,\) .*one for each token"),
        ({"targets": ROW.targets[:-1]}, r"targets has shape \(\d+,\) .*one for each token"),
        (
            {"targets": ROW.targets + 61},
            r"target \d+ at position 0 is out of range: expected 0 to 60",
        ),
        ({"targets": 0 * ROW.targets - 100, "mask": ROW.mask}, "no position has a loss"),
        ({"tokens": ROW.tokens - 61}, r"token -\d+ at position 0 is out of range"),
    ],
)
def test_examples_that_do_not_fit_are_named_before_the_first_step(
    change: dict[str, Any], message: str, held_out: bool, tmp_path: Path
) -> None:
    rows = [*DATA[1:], replace(ROW, **change, source="mine: row 9")]
    given = {"held_out": rows} if held_out else {}
    with pytest.raises(DataError, match="mine: row 9: " + message):
        train(small_model(), DATA if held_out else rows, RECIPE, out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="mine: row 9: " + message):
        evaluate(small_model(), rows)


def test_a_mask_of_zeros_and_ones() -> None:
    whole = evaluate(small_model(), DATA)
    assert evaluate(small_model(), [replace(e, mask=e.mask.astype(int)) for e in DATA]) == whole


def test_no_data() -> None:
    with pytest.raises(GptOssError, match="no data to train on"):
        train(small_model(), [])
    with pytest.raises(GptOssError, match="nothing to evaluate"):
        evaluate(small_model(), [])


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run that was interrupted after three steps."""
    with pytest.raises(KeyboardInterrupt):
        train(small_model(), DATA, RECIPE, out=tmp_path, report=Stop(3))
    return tmp_path


def test_a_step_that_was_reported_is_saved(stopped: Path) -> None:
    assert json.loads(SafetensorsFile(stopped / STATE).metadata["run"])["step"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": {"learning_rate": 0.1}}, "learning_rate was 0.02 and is 0.1"),
        ({"recipe": {"lora": LoRA(rank=3)}}, "rank was 2 and is 3"),
        ({"data": DATA[:-1]}, "the data has changed since the run began"),
        ({"model": {"policy": "float64"}}, "policy was 'float32' and is 'float64'"),
        ({"model": {"backend": "numba"}}, "backend was 'numpy' and is 'numba'"),
    ],
)
def test_a_run_goes_on_as_it_began(change: dict[str, Any], message: str, stopped: Path) -> None:
    recipe = replace(RECIPE, **change.get("recipe", {}))
    model = small_model(**change.get("model", {}))
    with pytest.raises(GptOssError, match=message):
        train(model, change.get("data", DATA), recipe, out=stopped, resume=True)


def test_resuming_what_is_not_there(tmp_path: Path, stopped: Path) -> None:
    with pytest.raises(GptOssError, match="expected the state of a run to resume"):
        train(small_model(), DATA, RECIPE, out=tmp_path / "none", resume=True)
    with pytest.raises(GptOssError, match="expected out, the folder of the run"):
        train(small_model(), DATA, RECIPE, resume=True)
    with pytest.raises(GptOssError, match="already holds a run: resume it, or choose another"):
        train(small_model(), DATA, RECIPE, out=stopped)


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_a_state_that_is_cut_off(cut: int, stopped: Path) -> None:
    raw = (stopped / STATE).read_bytes()
    (stopped / STATE).write_bytes(raw[:cut])
    with pytest.raises(GptOssError, match=STATE):
        train(small_model(), DATA, RECIPE, out=stopped, resume=True)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GptOssError, match="file: cannot be written: File exists"):
        train(small_model(), DATA, RECIPE, out=tmp_path / "file")
    with pytest.raises(GptOssError, match="cannot be written: Not a directory"):
        train(small_model(), DATA, RECIPE, out=tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("name", "what"), [(CONFIG, "an adapter"), (TENSORS, "an adapter"), ("config.json", "a model")]
)
def test_a_folder_that_holds_something_else(name: str, what: str, tmp_path: Path) -> None:
    """Else another adapter would be overwritten, or a model's folder become an adapter's."""
    (tmp_path / name).write_text("{}")
    with pytest.raises(GptOssError, match=f"already holds {what}: choose another folder"):
        train(small_model(), DATA, RECIPE, out=tmp_path)
    assert files_of(tmp_path) == {name: b"{}"}


def test_what_cannot_be_saved_is_said_before_the_work(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk with too little room, and a folder that has become read-only."""
    before, steps = files_of(stopped), Stop(100)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=1000, free=100))
    for out, resume in ((tmp_path / "new", False), (stopped, True)):
        with pytest.raises(GptOssError, match=r"the run needs \d+ bytes, the disk has 100 free"):
            train(small_model(), DATA, RECIPE, out=out, resume=resume, report=steps)
    monkeypatch.undo()

    def read_only(path: Path, *arguments: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "touch", read_only)
    with pytest.raises(GptOssError, match="cannot be written: Read-only file system"):
        train(small_model(), DATA, RECIPE, out=stopped, resume=True, report=steps)
    assert steps.left == 100
    assert {n: b for n, b in files_of(stopped).items() if n in before} == before


def test_a_full_disk_while_saving(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The former files stay, whole, and the run goes on from them when there is room."""
    before = files_of(stopped)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(GptOssError, match=f"{STATE}: cannot be written: No space left on device"):
        train(small_model(), DATA, RECIPE, out=stopped, resume=True)
    assert files_of(stopped) == before
    monkeypatch.undo()
    assert train(small_model(), DATA, RECIPE, out=stopped, resume=True).history[-1]["step"] == 7


def test_a_write_that_the_system_cuts_off(stopped: Path) -> None:
    """The same by a limit of the system on the size of a file."""
    resource = pytest.importorskip("resource")  # Unix
    before = files_of(stopped)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[STATE]) // 2, hard))
    try:
        with pytest.raises(GptOssError, match=f"{STATE}: cannot be written: File too large"):
            train(small_model(), DATA, RECIPE, out=stopped, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_of(stopped) == before


KILLED = """
    import sys
    from pathlib import Path
    from dataclasses import replace
    from tests.training import test_loop as t
    from gptoss_ref.training import train

    out = Path(sys.argv[1])
    recipe = replace(t.RECIPE, steps=100000, save_every=1)
    tell = lambda entry, steps: print(entry["step"], flush=True)
    train(t.small_model(), t.DATA, recipe, out=out, report=tell)
"""


def test_a_run_that_is_killed_leaves_whole_files(tmp_path: Path) -> None:
    """SIGKILL at any moment of a run that saves after every step: the state can always be read."""
    recipe = replace(RECIPE, steps=100_000, save_every=1)
    for number, wait in enumerate((0.0, 0.003, 0.011)):
        out = tmp_path / str(number)
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(KILLED), str(out)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout is not None
        for _ in range(4):
            process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with pytest.raises(KeyboardInterrupt):
            train(small_model(), DATA, recipe, out=out, resume=True, report=Stop(1))
        assert not list(out.glob("*.partial")), "partial files of the killed run"
        again = gr.training.read_adapter(out, CONFIGURATION)
        assert again.factors.keys() | again.whole.keys()
        assert json.loads((out / CONFIG).read_text())["r"] == 2
