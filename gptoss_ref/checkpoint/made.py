"""Small checkpoints of random weights, written when they are asked for.

=======================  ==========================================================================
``released-constants``   every constant is that of gpt-oss-20b and -120b, and D = F as there: for
                         ports that have them in their code, or take one of D and F for the other
``other-constants``      every constant is another one, and all dimensions differ: a port that has
                         one of the released constants in its code shows it here
=======================  ==========================================================================

``tiny`` has the released theta, betas, epsilon, limit, alpha and order of layers, so that a port
which does not read them from the configuration is right there too.

The weights are such that no constant is without effect on a prompt of 150 tokens: embeddings are
small, so that the epsilon counts beside them; a fifth of the gates and ups lies beyond the limit;
biases give queries and keys a size; sinks take a good part of the attention. What the model says
means nothing; its tokenizer is that of ``tiny``.
"""

from __future__ import annotations

import atexit
import dataclasses
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.checkpoint.names import Place, places
from gptoss_ref.checkpoint.writer import Output, write_json, write_shards
from gptoss_ref.config import FULL, GPT_OSS_20B, SLIDING, ModelConfig
from gptoss_ref.numerics import float_to_bfloat16

RELEASED = dataclasses.replace(
    GPT_OSS_20B,
    num_hidden_layers=4,
    num_experts=8,
    vocab_size=640,  # a multiple of 128, as 201088 is
    hidden_size=96,
    intermediate_size=96,
    num_attention_heads=8,
    num_key_value_heads=2,
    eos_token_ids=(459,),
    pad_token_id=456,
)
"""Of ``released-constants``: small dimensions, and otherwise gpt-oss-20b."""

OTHER = dataclasses.replace(
    RELEASED,
    vocab_size=603,
    hidden_size=160,
    head_dim=24,
    sliding_window=37,
    layer_types=(FULL, SLIDING, SLIDING, FULL),
    initial_context_length=1500,
    rope_theta=21000.0,
    rope_scaling_factor=5.0,
    max_position_embeddings=7500,
    rope_ntk_alpha=1.7,
    rope_ntk_beta=19.0,
    rms_norm_eps=1e-3,
    swiglu_limit=5.0,
    swiglu_alpha=1.3,
)
"""Of ``other-constants``."""

MADE = {"released-constants": RELEASED, "other-constants": OTHER}

_COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
_TINY = Path(__file__).parents[1] / "data" / "tiny"


@cache
def made(name: str) -> Path:
    """The folder of one of ``MADE``, in the Hugging Face layout; it lasts as the process does.

    The same bytes each time.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"gptoss_ref-{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write(MADE[name], folder)
    return folder


def write(config: ModelConfig, folder: Path) -> None:
    """A checkpoint of random weights into an empty folder; the same one for the same ``config``."""
    rng = np.random.default_rng(20)
    outputs = [_output(place, rng) for place in places(config, "hf")]
    write_shards(folder, outputs, sys.maxsize, None)
    write_json(folder / "config.json", config.to_json("hf"))
    for name in _COMPANIONS:
        if (_TINY / name).exists():
            shutil.copyfile(_TINY / name, folder / name)


def _output(place: Place, rng: np.random.Generator) -> Output:
    values = _values(place, rng)
    dtype = "U8" if place.kind == "bytes" else "BF16"

    def chunks() -> Iterator[NDArray[Any]]:
        yield values

    return Output(place.tensor, dtype, place.shape, chunks)


def _values(place: Place, rng: np.random.Generator) -> NDArray[Any]:
    """One tensor as it is stored."""
    name = place.weight.split(".", 2)[-1]  # without block.N
    if name.endswith(".blocks"):
        return rng.integers(0, 256, place.shape, dtype=np.uint8)
    if name.endswith(".scales"):  # random codes have a root mean square of 2.93
        target = 4.0 if "mlp1" in name else 0.02
        exponent = round(math.log2(target / (2.93 * math.sqrt(32 * place.shape[-1]))))
        return rng.integers(127 + exponent, 129 + exponent, place.shape, dtype=np.uint8)
    if name.endswith("norm_scale"):
        return float_to_bfloat16(rng.uniform(0.5, 1.5, place.shape))
    mean, deviation = _DISTRIBUTIONS[name]
    if deviation is None:  # of a matrix: outputs of about the size of its inputs
        deviation = 1.2 / math.sqrt(place.shape[-1])
    return float_to_bfloat16(rng.normal(mean, deviation, place.shape))


_DISTRIBUTIONS: dict[str, tuple[float, float | None]] = {
    "embedding": (0.0, 0.03),
    "unembedding": (0.0, None),
    "attn.q_weight": (0.0, None),
    "attn.k_weight": (0.0, None),
    "attn.v_weight": (0.0, None),
    "attn.q_bias": (0.0, 0.6),
    "attn.k_bias": (0.0, 0.6),
    "attn.v_bias": (0.0, 0.4),
    "attn.sinks": (0.5, 1.5),
    "attn.out_weight": (0.0, None),
    "attn.out_bias": (0.0, 0.2),
    "mlp.gate_weight": (0.0, None),
    "mlp.gate_bias": (0.0, 0.6),
    "mlp.mlp1_bias": (0.0, 1.0),
    "mlp.mlp2_bias": (0.0, 0.2),
}
"""Mean and standard deviation of the floats; None: by the number of inputs."""
