"""Adapters in PEFT's files: PEFT's load here, ours load in PEFT, and training is torch's.

The oracle is PEFT on transformers' gpt-oss with the bundled model's weights, float32.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import gptoss_ref as gr
from gptoss_ref.checkpoint.peft import CONFIG, TENSORS
from gptoss_ref.errors import CheckpointError
from gptoss_ref.training import (
    AdamW,
    Adapter,
    Example,
    LoRA,
    LowRank,
    Recipe,
    read_adapter,
    train,
    write_adapter,
)
from tests.support.distance import relative_l2

peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning"),
]

TOKENS = np.random.default_rng(5).integers(0, 450, 47)
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
# Which modules have factors, in PEFT's words. Experts are parameters there, not modules.
TARGETS: dict[str, dict[str, Any]] = {
    "everything": {
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "target_parameters": [*EXPERTS, "router.weight"],
    },
    "second expert matrix alone, rsLoRA": {
        "target_modules": [],
        "target_parameters": EXPERTS[1:],
        "use_rslora": True,
    },
    "first expert matrix of one layer": {
        "target_modules": [],
        "target_parameters": ["layers.3.mlp.experts.gate_up_proj"],
    },
    "both ends": {"target_modules": ["lm_head", "embed_tokens"]},
    "patterns, and a module saved whole": {
        "target_modules": ["v_proj"],
        "modules_to_save": ["lm_head"],
        "rank_pattern": {r"layers\.1\..*v_proj": 3},
        "alpha_pattern": {r"layers\.0\..*v_proj": 30},
    },
}


def wrapped(model: Any, **targets: Any) -> Any:
    """A copy of ``model`` with LoRA of rank 5; alpha is 7."""
    settings = peft.LoraConfig(r=5, lora_alpha=7, task_type="CAUSAL_LM", **targets)
    return peft.get_peft_model(copy.deepcopy(model), settings)


def logits_of(model: Any) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor(TOKENS[None])).logits[0].numpy()
    return logits


@pytest.fixture(scope="module", params=TARGETS, ids=list(TARGETS))
def trained(
    request: pytest.FixtureRequest, tiny_transformers: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, np.ndarray]:
    """A folder with an adapter that torch has trained for two steps, and PEFT's logits."""
    torch.manual_seed(0)
    model = wrapped(tiny_transformers, **TARGETS[request.param])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.02)
    row = torch.tensor(TOKENS[None])
    with torch.enable_grad():
        for _ in range(2):
            model(row, labels=row).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("peft")
    model.save_pretrained(folder)
    return folder, logits_of(model)


def test_pefts_adapter_gives_pefts_logits(trained: tuple[Path, np.ndarray], tiny: Any) -> None:
    folder, theirs = trained
    ours = gr.load("tiny", adapter=folder)(TOKENS)
    assert relative_l2(ours, theirs) <= 1e-5
    assert relative_l2(tiny(TOKENS), theirs) >= 1e-2, "two steps changed what the model says"


def test_an_adapter_is_written_as_peft_writes_it(
    trained: tuple[Path, np.ndarray], tiny: Any, tmp_path: Path
) -> None:
    """Names, shapes and values of all tensors, and the settings that PEFT reads."""
    folder, _ = trained
    write_adapter(tmp_path, read_adapter(folder, tiny.config), tiny.config)
    theirs, ours = (load_file(at / TENSORS) for at in (folder, tmp_path))
    assert set(ours) == set(theirs)
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values, err_msg=name)
    theirs, ours = (json.loads((at / CONFIG).read_text()) for at in (folder, tmp_path))
    for key in ("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "modules_to_save"):
        assert ours[key] == theirs[key], key


LORAS = {
    "everything": LoRA(rank=3, alpha=5.0, targets=("*",)),
    "some layers": LoRA(rank=2, alpha=9.0, targets=("block.1.*", "block.?.attn.k_weight")),
    "experts": LoRA(rank=4, alpha=6.0, targets=("*.mlp1_weight", "block.2.*"), rslora=True),
}


def random_adapter(model: gr.Model, lora: LoRA, seed: int) -> Adapter:
    """Its second factors, which training begins at zero, are drawn too."""
    rng = np.random.default_rng(seed)
    factors = {
        name: LowRank(f.a, rng.normal(0, 0.02, f.b.shape).astype(np.float32), f.scale)
        for name, f in lora.start(model.weights, seed).items()
    }
    return Adapter(factors, {}, lora.alpha, lora.rslora, "tiny")


@pytest.mark.parametrize("name", LORAS)
def test_our_adapter_loads_in_peft(
    name: str, tiny: Any, tiny_transformers: Any, tmp_path: Path
) -> None:
    adapter = random_adapter(tiny, LORAS[name], 3)
    write_adapter(tmp_path, adapter, tiny.config)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(copy.deepcopy(tiny_transformers), tmp_path)
    assert not [w for w in said if "missing" in str(w.message)]
    ours = gr.load(tmp_path)(TOKENS)  # "tiny" is the base that it names
    assert relative_l2(ours, logits_of(model)) <= 1e-5
    assert relative_l2(ours, tiny(TOKENS)) >= 1e-2


def test_training_is_torchs(tiny: Any, tiny_transformers: Any, tmp_path: Path) -> None:
    """Five steps of PEFT's model under torch, from the same factors: the same losses and factors.

    With a warm-up, a falling rate, clipping that acts, weight decay, and a batch whose examples
    have different numbers of targets, in two parts. Adam divides a gradient by its own size, which
    enlarges rounding where a gradient is nearly zero: hence 2e-3 of each factor's change.
    """
    lora = LoRA(
        rank=3, alpha=6.0, targets=("*.attn.q_weight", "*.attn.v_weight", "*.mlp.mlp?_weight")
    )
    rng = np.random.default_rng(1)
    examples = []
    for length in (23, 9, 31):
        tokens = rng.integers(0, 450, length + 1)
        mask = rng.random(length) < 0.7
        examples.append(Example(tokens[:-1], tokens[1:], mask))
    recipe = Recipe(
        steps=5,
        batch_size=3,
        accumulation=2,
        learning_rate=0.01,
        warmup=2,
        schedule="linear",
        clip=0.5,
        lora=lora,
        optimizer=AdamW(betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1),
    )
    run = train(tiny, examples, recipe)
    start = Adapter(lora.start(tiny.weights, recipe.seed), {}, lora.alpha, lora.rslora)
    write_adapter(tmp_path, start, tiny.config)
    model = peft.PeftModel.from_pretrained(
        copy.deepcopy(tiny_transformers), tmp_path, is_trainable=True
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1)
    losses = []
    with torch.enable_grad():
        for step in range(5):
            loss = sum(
                torch.nn.functional.cross_entropy(
                    model(torch.tensor(e.tokens[None])).logits[0][torch.tensor(e.mask)],
                    torch.tensor(e.targets[e.mask]),
                    reduction="sum",
                )
                for e in examples
            ) / sum(e.count for e in examples)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, 0.5)
            assert float(norm) == pytest.approx(run.history[step]["norm"], rel=1e-3)
            optimizer.param_groups[0]["lr"] = run.history[step]["rate"]
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss))
    np.testing.assert_allclose([e["loss"] for e in run.history], losses, rtol=1e-4)
    assert losses[-1] < losses[0] - 0.05
    assert max(e["norm"] for e in run.history) > 0.5, "clipping acts"
    model.save_pretrained(tmp_path / "theirs")
    theirs = read_adapter(tmp_path / "theirs", tiny.config)
    assert set(theirs.factors) == set(run.adapter.factors)
    for name, ours in run.adapter.factors.items():
        begun, other = start.factors[name], theirs.factors[name]
        for a, b, before in ((ours.a, other.a, begun.a), (ours.b, other.b, begun.b)):
            assert relative_l2(a - before, b - before) <= 2e-3, name


# --- adapters that cannot be used ---------------------------------------------------------------


@pytest.fixture
def broken(tiny: Any, tmp_path: Path) -> Callable[..., str]:
    """Writes an adapter, spoils it, and gives the error."""

    def run(change: Callable[[dict[str, Any]], Any] = lambda tensors: None, **settings: Any) -> str:
        folder = tmp_path / "adapter"
        folder.mkdir()
        lora = LoRA(rank=2, targets=("*.attn.q_weight", "block.1.mlp.mlp?_weight"))
        write_adapter(folder, random_adapter(tiny, lora, 0), tiny.config)
        tensors = load_file(folder / TENSORS)
        change(tensors)
        save_file(tensors, folder / TENSORS)
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | settings))
        with pytest.raises(CheckpointError) as caught:
            gr.load(folder)
        return str(caught.value)

    return run


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
EXPERT = "base_model.model.model.layers.1.mlp.experts.base_layer.lora_B.weight"


def test_an_adapter_of_other_shapes(broken: Callable[..., str]) -> None:
    said = broken(lambda tensors: tensors.update({Q: np.zeros((2, 64), np.float32)}))
    assert f"{Q!r}: A, B have shape ((2, 64), (192, 2)); the model calls for" in said
    assert "((R, 160), (192, R))" in said


def test_an_adapter_of_another_rank(broken: Callable[..., str]) -> None:
    said = broken(r=4)
    assert "have rank 2; adapter_config.json says r = 4" in said


def test_a_rank_that_cannot_be(broken: Callable[..., str]) -> None:
    assert "r must be an integer of 1 or more, not 0" in broken(r=0)


def test_an_adapter_for_more_experts(broken: Callable[..., str]) -> None:
    said = broken(lambda tensors: tensors.update({EXPERT: np.zeros((192, 64), np.float32)}))
    assert "layers.1.mlp.experts" in said
    assert "((16·R, 160), (192, R·16))" in said


@pytest.mark.parametrize(
    "module", ["model.layers.0.mlp.gate_proj", "model.layers.7.self_attn.q_proj", "transformer.h"]
)
def test_an_adapter_of_an_unknown_module(module: str, broken: Callable[..., str]) -> None:
    name = f"base_model.model.{module}.lora_A.weight"
    other = name.replace("lora_A", "lora_B")
    zero = np.zeros((2, 2), np.float32)
    said = broken(lambda tensors: tensors.update({name: zero, other: zero}))
    assert f"tensor {name!r} belongs to no matrix of gpt-oss" in said


def test_half_a_pair_of_factors(broken: Callable[..., str]) -> None:
    said = broken(lambda tensors: tensors.pop(Q))
    assert "of 'model.layers.0.self_attn.q_proj' there is lora_B alone" in said


def test_a_factor_that_is_not_finite(broken: Callable[..., str]) -> None:
    said = broken(lambda tensors: tensors.update({Q: np.full((2, 160), np.nan, np.float32)}))
    assert f"tensor {Q!r} holds a NaN or an infinity" in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type must be 'LORA', not 'IA3'"),
        ({"use_dora": True}, "use_dora must be False, not True"),
        ({"bias": "all"}, "bias must be 'none', not 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changes the base weights"),
        ({"target_parameters": "all"}, "target_parameters must be a list of names, not 'all'"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern '(': missing )"),
        ({"alpha_pattern": {"q_proj": "3"}}, "alpha_pattern 'q_proj' must be a number, not '3'"),
        ({"lora_alpha": "8"}, "lora_alpha must be a number, not '8'"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is None: load the model it"),
        ({"base_model_name_or_path": "no/where"}, "an adapter for a model that cannot be loaded"),
    ],
)
def test_settings_that_are_not_computed_here(
    settings: dict[str, Any], message: str, broken: Callable[..., str]
) -> None:
    assert message in broken(**settings)


def test_an_adapter_is_no_checkpoint(tiny: Any, tmp_path: Path) -> None:
    write_adapter(tmp_path, random_adapter(tiny, LORAS["experts"], 0), tiny.config)
    with pytest.raises(CheckpointError, match=r"an adapter, not a checkpoint: gr\.load appl"):
        gr.load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"expected a folder with PEFT's adapter_config.json"):
        gr.load("tiny", adapter=tmp_path / "none")
    (tmp_path / TENSORS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"it holds adapter_model.bin: save the adapter as"):
        gr.load(tmp_path)


def test_gate_up_and_down_swapped_in_the_file(tiny: Any, tmp_path: Path) -> None:
    """PEFT with a transformers that does not say how its experts lie stores outputs first."""
    adapter = random_adapter(tiny, LORAS["experts"], 4)
    write_adapter(tmp_path, adapter, tiny.config)
    tensors = load_file(tmp_path / TENSORS)
    for name in [n for n in tensors if "experts" in n and "lora_A" in n]:
        other = name.replace("lora_A", "lora_B")
        a, b = tensors[name], tensors[other]  # (E·R, M), (N, R·E)
        experts, rank = 16, len(a) // 16
        tensors[name] = b.reshape(len(b), rank, experts).transpose(2, 1, 0).reshape(-1, len(b))
        tensors[other] = a.reshape(experts, rank, -1).transpose(2, 1, 0).reshape(a.shape[1], -1)
    save_file({n: np.ascontiguousarray(x) for n, x in tensors.items()}, tmp_path / TENSORS)
    again = read_adapter(tmp_path, tiny.config)
    for name, factors in adapter.factors.items():
        np.testing.assert_allclose(again.factors[name].product(), factors.product(), atol=1e-7)
