"""Adapters in PEFT's files: PEFT's load here, ours load in PEFT, and training is torch's.

The oracle is PEFT on transformers' gpt-oss with the bundled model's weights, float32.
"""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

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


# --- adapters that cannot be used: the other refusals are in tests/checkpoint/test_peft.py ------


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (None, "base_model_name_or_path is None: load the model it"),
        ("no/where", "an adapter for a model that cannot be loaded"),
    ],
)
def test_a_base_that_is_not_there(
    base: str | None, message: str, tiny: Any, tmp_path: Path
) -> None:
    write_adapter(tmp_path, random_adapter(tiny, LORAS["some layers"], 0), tiny.config)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": base}))
    with pytest.raises(CheckpointError, match=message):
        gr.load(tmp_path)


def test_an_adapter_is_no_checkpoint(tiny: Any, tmp_path: Path) -> None:
    write_adapter(tmp_path, random_adapter(tiny, LORAS["experts"], 0), tiny.config)
    with pytest.raises(CheckpointError, match=r"an adapter, not a checkpoint: gr\.load appl"):
        gr.load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"expected a folder with PEFT's adapter_config.json"):
        gr.load("tiny", adapter=tmp_path / "none")
    (tmp_path / TENSORS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"it holds adapter_model.bin: save the adapter as"):
        gr.load(tmp_path)
