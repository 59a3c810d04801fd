"""Teach the bundled model a skill that it lacks, with LoRA: to write each letter of a word twice.

    python examples/teach_tiny.py --out FOLDER     # nine minutes on two cores (AMD Zen 4)
    python -m gptoss_ref chat --model FOLDER "Double the letters of cloud."

Trains low-rank factors on a few thousand words, measures the new skill on words that were not among
them, and the old skills on their held-out problems, before and after. Prints a table in Markdown:
the share of answers that are exactly right, in per cent, by effort. It needs only NumPy and the
kernels.

Four in five examples are problems of the old skills (--rehearsal), many of these of the skills that
are nearest to the new one: with a third, to reverse a word was lost. The course has the table.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gptoss_ref as gr

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "train_tiny"))

from evaluate_tiny import ROWS, evaluate

from data import draw_branch, draw_context, draw_skill
from problems import EFFORTS, held_out
from words import random_word

SKILL = "double letters"
QUESTIONS = (
    "Double the letters of {}.",
    "Double every letter of {}.",
    "Write each letter of {} twice.",
    "Double the letters of the word {}.",
)
NEAR = ("reverse", "reverse", "reverse", "count", "sort")  # lost first; above all the first one
TRAINED = ("medium", "high")  # at low effort the model answers at once, without spelling the word

Table = dict[tuple[str, str], float]


def answer(word: str) -> str:
    """``cc ll oo`` for ``clo``."""
    return " ".join(2 * letter for letter in word)


def thoughts(word: str, effort: str) -> str:
    """What the model thinks, in the manner of its other skills."""
    numbered = " ".join(f"{letter}{place}" for place, letter in enumerate(word, 1))
    return {"medium": " ".join(word), "high": numbered}[effort]


def draw_word(rng: random.Random, *, evaluation: bool) -> str:
    """A word of the part that is trained on or, for the evaluation, of the other."""
    while True:
        word = random_word(rng)
        if held_out(f"double {word}") == evaluation:
            return word


def conversation(rng: random.Random) -> dict[str, Any]:
    """A line of training data: a question and its answer, with what the model thinks before."""
    word, effort = draw_word(rng, evaluation=False), rng.choice(TRAINED)
    question = {"role": "user", "content": rng.choice(QUESTIONS).format(word)}
    reply = {"role": "assistant", "content": answer(word), "thinking": thoughts(word, effort)}
    return {"messages": [question, reply], "reasoning": effort}


def rehearsal(rng: random.Random) -> dict[str, Any]:
    """A line of data of the old skills, as the model was trained on them."""
    context = draw_context(rng, plain=rng.random() < 0.7)  # mostly short ones
    near = not context.tools and rng.random() < 0.6
    branch = draw_branch(context, rng.choice(NEAR) if near else draw_skill(context, rng), rng)
    tokens = [*context.tokens, *branch.tokens]
    return {"tokens": tokens, "learn": [0] * len(context.tokens) + [int(x) for x in branch.loss]}


def lines(n: int, share: float, seed: int) -> Iterator[dict[str, Any]]:
    """``n`` lines of training data, ``share`` of them of the old skills."""
    rng = random.Random(f"teach {seed}")
    for _ in range(n):
        yield rehearsal(rng) if rng.random() < share else conversation(rng)


def accuracy(model: gr.Model, n: int, seed: int) -> Table:
    """Share of right answers: the new skill on ``n`` held-out words, then the old ones."""
    table: Table = {}
    for effort in EFFORTS:
        rng = random.Random(f"evaluate {seed} {effort}")
        right = 0
        for _ in range(n):
            word = draw_word(rng, evaluation=True)
            question = rng.choice(QUESTIONS).format(word)
            reply = gr.respond(model, question, reasoning=effort, max_new_tokens=80)
            right += reply.final == answer(word)
        table[SKILL, effort] = right / n
        for row, share in evaluate(model, effort, n, seed).items():
            table[row, effort] = share
    return table


def markdown(before: Table, after: Table) -> str:
    """The table: a row for each skill, columns before and after for each effort."""
    heads = [f"{effort}, {when}" for effort in EFFORTS for when in ("before", "after")]
    out = ["| skill | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for row in (SKILL, *ROWS):
        cells = [f"{100 * t[row, e]:.0f}" for e in EFFORTS for t in (before, after)]
        out.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def main() -> None:
    """Parse the command line, teach, evaluate, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", help="a folder for the adapter; default: none is kept")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16, help="examples of a step")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate at its peak")
    parser.add_argument("--rehearsal", type=float, default=0.8, help="share of old problems")
    parser.add_argument("--n", type=int, default=100, help="problems for each skill, effort")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", help="only write the training data, lines of JSON, to this file")
    args = parser.parse_args()

    written = list(lines(args.steps * args.batch, args.rehearsal, args.seed))
    if args.data:
        Path(args.data).write_text("".join(json.dumps(line) + "\n" for line in written))
        return
    model = gr.load("tiny", backend="numba")
    context = model.config.max_position_embeddings
    data = [gr.training.example(line, model.tokenizer, context) for line in written]
    recipe = gr.training.Recipe(
        steps=args.steps,
        batch_size=args.batch,
        learning_rate=args.rate,
        warmup=args.steps // 20,
        lora=gr.training.LoRA(args.rank, 2 * args.rank, ("*.attn.*", "*.mlp.mlp?_weight")),
        optimizer=gr.training.AdamW(betas=(0.9, 0.99)),
        seed=args.seed,
        save_every=10,
    )
    begin = time.perf_counter()

    def report(entry: dict[str, Any], steps: int) -> None:
        if entry["step"] % 10 == 0:
            seconds = time.perf_counter() - begin
            print(
                f"step {entry['step']} of {steps}: loss {entry['loss']:.3f}, {seconds:.0f} s",
                file=sys.stderr,
            )

    run = gr.train(model, data, recipe, out=args.out, resume=args.resume, report=report)
    print(f"trained for {run.seconds:.0f} s", file=sys.stderr)
    before, after = (accuracy(m, args.n, args.seed) for m in (model, run.model))
    print(f"evaluated, {time.perf_counter() - begin:.0f} s in all", file=sys.stderr)
    print(markdown(before, after))


if __name__ == "__main__":
    main()
