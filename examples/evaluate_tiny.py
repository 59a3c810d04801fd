"""Measure the bundled tiny model on held-out problems (split by a hash).

    python examples/evaluate_tiny.py                        # the bundled model
    python examples/evaluate_tiny.py tiny FOLDER --n 50     # two models side by side
    python examples/evaluate_tiny.py --json

Prints a table in Markdown: the share of answers that are exactly right, by skill and effort. All
answers are greedy. To save time, the expected reply is used as a draft: one pass over it gives the
greedy token at every position, and only if a token differs from the draft, the rest is generated
token by token. The result is that of plain greedy decoding.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import gptoss_ref as gr
from gptoss_ref.cache import KVCache
from gptoss_ref.chat import Message, parse
from gptoss_ref.chat.reply import ToolCall

sys.path.insert(0, str(Path(__file__).parent / "train_tiny"))

from data import Branch, draw_branch, draw_context
from problems import EFFORTS

SKILLS = ("add", "subtract", "multiply", "compare", "reverse", "count", "sort")
ROWS = (*SKILLS, "well-formed call", "right call", "tool answer")
MAX_REPLY = 200  # tokens

Table = dict[tuple[str, str], float]


class Evaluator:
    """Greedy replies of one model; contexts are computed once and their caches copied."""

    def __init__(self, model: gr.Model) -> None:
        self.model = model
        self._caches: dict[tuple[int, ...], KVCache] = {}

    def _cache(self, context: Sequence[int]) -> KVCache:
        key = tuple(context)
        if key not in self._caches:
            self._caches[key] = self.model.new_cache()
            self.model(key, cache=self._caches[key], last_only=True)
        return copy.deepcopy(self._caches[key])

    def forget(self, context: Sequence[int]) -> None:
        """Drop the cache of a context that is not needed any more."""
        del self._caches[tuple(context)]

    def greedy(self, context: Sequence[int], prompt: Sequence[int], draft: list[int]) -> list[int]:
        """Return the greedy reply, stop token included, to ``prompt`` after ``context``."""
        tokens = [*prompt, *draft[:-1]]
        logits = self.model(tokens, cache=self._cache(context))[len(prompt) - 1 :]  # (reply, V)
        best = logits.argmax(-1).tolist()
        if best == draft:
            return draft
        at = next(i for i in range(len(draft)) if best[i] != draft[i])
        begun = [*draft[:at], best[at]]
        if begun[-1] in self.model.stop_tokens:
            return begun
        rest = gr.generate(
            self.model, [*prompt, *begun], max_new_tokens=MAX_REPLY, cache=self._cache(context)
        )
        return [*begun, *map(int, rest)]


def _messages(model: gr.Model, reply: list[int]) -> list[Message]:
    return list(parse(reply, model.tokenizer, role="assistant"))


def _answered(model: gr.Model, reply: list[int], answer: str) -> bool:
    """Tell whether the reply ends with a final message that is exactly ``answer``."""
    messages = _messages(model, reply)
    if not messages or reply[-1] != model.tokenizer.special_id("return"):
        return False
    return messages[-1].channel == "final" and messages[-1].text == answer


def _call(model: gr.Model, reply: list[int]) -> ToolCall | None:
    """Return the call that the reply ends with, if it is one with a JSON object of arguments."""
    messages = _messages(model, reply)
    if not messages or reply[-1] != model.tokenizer.special_id("call"):
        return None
    if messages[-1].recipient is None:
        return None
    call = ToolCall.from_message(messages[-1])
    return None if call.error else call


def _turns(branch: Branch) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the prompt so far and the expected reply, for each of the assistant's turns."""
    edges = [i for i in range(1, len(branch.loss)) if branch.loss[i] != branch.loss[i - 1]]
    edges.append(len(branch.loss))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        yield branch.tokens[:start], branch.tokens[start:end]


@dataclass(frozen=True)
class Answer:
    """A held-out question, the greedy reply (stop token included), and whether it is right."""

    skill: str
    question: str
    reply: list[int]
    right: bool


def answers(
    model: gr.Model, effort: str, skills: Sequence[str], n: int, seed: int
) -> Iterator[Answer]:
    """Ask ``n`` held-out problems of each skill. Equal arguments draw equal problems."""
    evaluator = Evaluator(model)
    rng = random.Random(f"evaluate {seed} {effort}")
    plain = draw_context(rng, effort=effort, tools=False, plain=True)
    for skill in skills:
        for _ in range(n):
            branch = draw_branch(plain, skill, rng, evaluation=True)
            ((prompt, draft),) = _turns(branch)
            reply = evaluator.greedy(plain.tokens, prompt, draft)
            right = _answered(model, reply, branch.problem.answer)
            yield Answer(skill, branch.problem.question, reply, right)


def evaluate(model: gr.Model, effort: str, n: int, seed: int) -> dict[str, float]:
    """Return the share of right answers by row, ``n`` held-out problems each."""
    right = dict.fromkeys(ROWS, 0)
    for answer in answers(model, effort, SKILLS, n, seed):
        right[answer.skill] += answer.right
    evaluator = Evaluator(model)
    rng = random.Random(f"evaluate tools {seed} {effort}")
    for _ in range(n):
        context = draw_context(rng, effort=effort, tools=True, plain=True)
        branch = draw_branch(context, "tool", rng, evaluation=True)
        (prompt, call), (later, answer) = _turns(branch)
        reply = evaluator.greedy(context.tokens, prompt, call)
        made, wanted = _call(model, reply), _call(model, call)
        right["well-formed call"] += made is not None
        right["right call"] += made == wanted
        reply = evaluator.greedy(context.tokens, later, answer)
        right["tool answer"] += _answered(model, reply, branch.problem.answer)
        evaluator.forget(context.tokens)
    return {row: count / n for row, count in right.items()}


def markdown(tables: Sequence[tuple[str, Table]]) -> str:
    """Return the table: a row for each skill, a column for each effort and model."""
    heads = [f"{effort}, {name}" for effort in EFFORTS for name, _ in tables]
    lines = ["| skill | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for row in ROWS:
        cells = [f"{100 * table[row, effort]:.1f}" for effort in EFFORTS for _, table in tables]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, evaluate, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=["tiny"], help="tiny, or folders")
    parser.add_argument("--n", type=int, default=200, help="problems for each skill and effort")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--policy", default="float32")
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    tables: list[tuple[str, Table]] = []
    for name in args.models:
        model = gr.load(name, backend=args.backend, policy=args.policy)
        table: Table = {}
        begin = time.perf_counter()
        for effort in EFFORTS:
            for row, share in evaluate(model, effort, args.n, args.seed).items():
                table[row, effort] = share
            print(f"{name}, {effort}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)
        tables.append((name, table))
    if args.json:
        shares = [
            {"model": name, "skill": row, "effort": effort, "n": args.n, "right": share}
            for name, table in tables
            for (row, effort), share in table.items()
        ]
        print(json.dumps(shares, indent=1))
    else:
        print(markdown(tables))


if __name__ == "__main__":
    main()
