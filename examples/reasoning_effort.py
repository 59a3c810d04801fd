"""Measure the effect of reasoning effort: accuracy and number of tokens on held-out problems.

    python examples/reasoning_effort.py --n 25

The effort is one line of the system message. At low effort the model answers at once, at medium
effort it writes a short analysis, at high effort a longer one. Prints the share of right answers
and the mean length of a reply (including the analysis) for each skill and effort; then the number
of tokens for each additional right answer.
"""

import argparse
import itertools

import numpy as np
from evaluate_tiny import EFFORTS, SKILLS, answers

import gptoss_ref as gr

parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
parser.add_argument("--n", type=int, default=25, help="problems for each skill and effort")
parser.add_argument("--skills", nargs="+", choices=SKILLS, default=SKILLS)
args = parser.parse_args()

model = gr.load("tiny")
right, length = {}, {}  # effort -> (skills, n)
for effort in EFFORTS:
    with gr.threads(1):  # more threads do not help with small layers
        given = list(answers(model, effort, args.skills, args.n, seed=1))
    right[effort] = np.reshape([answer.right for answer in given], (-1, args.n))
    length[effort] = np.reshape([len(answer.reply) for answer in given], (-1, args.n))

print("right, tokens " + "".join(f"{effort:>14}" for effort in EFFORTS))
for row, skill in enumerate(args.skills):
    cells = [f"{right[e][row].mean():6.0%},{length[e][row].mean():4.0f}" for e in EFFORTS]
    print(f"{skill:14}" + "".join(f"{cell:>14}" for cell in cells))
cells = [f"{right[e].mean():6.0%},{length[e].mean():4.0f}" for e in EFFORTS]
print(f"{'all':14}" + "".join(f"{cell:>14}" for cell in cells))
for less, more in itertools.pairwise(EFFORTS):
    gain = right[more].mean() - right[less].mean()
    price = f"{(length[more].mean() - length[less].mean()) / gain:.0f}" if gain > 0 else "no"
    print(f"from {less} to {more}: {price} tokens for each further right answer")
