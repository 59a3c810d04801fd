"""Remove the attention sinks from the trained model and count its errors.

    python examples/ablate_sinks.py --n 60 --skills subtract multiply

A sink is a logit that takes part in a head's softmax and has no value. With a sink of minus
infinity, every row of weights sums to one. The script prints the share of attention that the sinks
of each block take during a multiplication; then the number of right answers to the same held-out
problems as trained, without sinks, and without those of windowed or full layers; then the number of
problems that only one of the first two models solves.
"""

import argparse
import dataclasses

import numpy as np
from evaluate_tiny import answers

import gptoss_ref as gr
from gptoss_ref.chat import build_conversation, render_conversation

parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
parser.add_argument("--n", type=int, default=60, help="problems for each skill")
parser.add_argument("--effort", choices=["low", "medium", "high"], default="medium")
parser.add_argument("--skills", nargs="+", default=["subtract", "multiply"])
args = parser.parse_args()

model = gr.load("tiny")
LAYERS = range(model.config.num_hidden_layers)


def without_sinks(layers: range) -> gr.Model:
    """The same model with the sinks of these layers at minus infinity."""
    blocks = list(model.weights.blocks)
    for n in layers:
        attn = blocks[n].attn
        none = np.full(attn.sinks.shape, -np.inf, np.float32)
        blocks[n] = dataclasses.replace(blocks[n], attn=dataclasses.replace(attn, sinks=none))
    weights = dataclasses.replace(model.weights, blocks=tuple(blocks))
    return gr.Model(model.config, weights, checkpoint=model.checkpoint)


prompt = render_conversation(build_conversation("What is 34 * 27?"), model.tokenizer)
reply = gr.generate(model, prompt)
trace = gr.trace(model, [*prompt, *reply], taps="*.attn.weights")
for n in LAYERS:
    shares = 1 - trace[f"block.{n}.attn.weights"][:, len(prompt) :].sum(-1).mean(-1)  # (H,)
    kind = "windowed" if model.config.window(n) else "full"
    print(f"block {n}, {kind:8} sinks take {shares.mean():4.0%}, {shares.max():4.0%} in one head")

right = {}  # who -> (skills * n,) bools
with gr.threads(1):  # more threads do not help with small layers
    for who, changed in {
        "as trained": model,
        "no sinks": without_sinks(LAYERS),
        "none in windowed layers": without_sinks(LAYERS[0::2]),
        "none in full layers": without_sinks(LAYERS[1::2]),
    }.items():
        given = answers(changed, args.effort, args.skills, args.n, seed=1)
        right[who] = np.array([answer.right for answer in given])

print(f"{f'right of {args.n}':24}" + "".join(f"{skill:>10}" for skill in args.skills))
for who, flags in right.items():
    print(f"{who:24}" + "".join(f"{n:10d}" for n in flags.reshape(-1, args.n).sum(-1)))
trained, ablated = right["as trained"], right["no sinks"]
print(f"right only with sinks: {sum(trained & ~ablated)}, only without: {sum(ablated & ~trained)}")
