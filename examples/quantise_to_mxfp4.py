"""Quantise matrices to MXFP4 and back, and measure the error.

    python examples/quantise_to_mxfp4.py

MXFP4 stores four bits per value and one scale byte for 32 values. Prints the bits per value, the
relative error ‖x̂ − x‖ / ‖x‖ of Gaussian numbers and of an attention matrix of the trained model
for each scale rule, and the error of a second quantisation (none). Then the same for the experts,
which were trained in MXFP4: there is no error.
"""

import numpy as np

import gptoss_ref as gr
from gptoss_ref.layers.mxfp4 import decode, encode
from gptoss_ref.numerics import widen


def error(x: np.ndarray, rule: str = "floor") -> float:
    """Relative L2 error of a round trip."""
    return float(np.linalg.norm(decode(*encode(x, rule=rule)) - x) / np.linalg.norm(x))


model = gr.load("tiny")
attention = model.weights.blocks[0].attn.q_weight  # (H*C, D), bfloat16 bits
experts = model.weights.blocks[0].mlp.mlp1_weight  # (E, 2F, D), MXFP4
matrices = {
    "Gaussian": np.random.default_rng(0).standard_normal((512, 512)),
    "q_weight": widen(attention, np.float64),
}

blocks, scales = encode(matrices["Gaussian"])
print(f"{8 * (blocks.nbytes + scales.nbytes) / matrices['Gaussian'].size:.2f} bits per value")
print(f"{'rule':8}" + "".join(f"{name:>10}" for name in matrices))
for rule in ("floor", "ceil", "even", "fit"):
    print(f"{rule:8}" + "".join(f"{error(x, rule):10.4f}" for x in matrices.values()))
print(f"again   {error(decode(blocks, scales)):10.4f}")
print(f"experts {error(decode(experts.blocks, experts.scales)):10.4f}")
