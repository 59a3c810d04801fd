"""Train the tiny model, with checkpoints from which a run goes on exactly where it stopped.

    python train.py --out runs/tiny                  # two CPU cores; a GPU if there is one
    python train.py --out runs/tiny --resume

Every batch is drawn from a generator seeded by the run's seed and the step, so a resumed run sees
what an uninterrupted one would have seen.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections import defaultdict
from pathlib import Path

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    sys.exit("this needs torch: python -m pip install torch")

from batch import Batch, collate
from data import PLAIN, draw_branch, draw_context, draw_skill
from model import Config, TinyGptOss
from muon import Muon
from problems import EFFORTS

MATRICES = ("qkv_weight", "out_weight", "mlp1_weight", "mlp2_weight")  # Muon's; the rest AdamW's
LONG_STEPS = 0.1  # share of steps whose contexts have at least four earlier turns


def draw_batch(seed: str, cfg: Config, prefixes: int, branches: int) -> Batch:
    """Draw one step's contexts and branches."""
    rng = random.Random(seed)
    long = rng.random() < LONG_STEPS
    contexts = [draw_context(rng, long=long) for _ in range(prefixes)]
    drawn = [
        (i, draw_branch(context, draw_skill(context, rng), rng))
        for i, context in enumerate(contexts)
        for _ in range(branches)
    ]
    return collate(contexts, drawn, cfg.window)


@torch.no_grad()
def evaluate(net: TinyGptOss, device: torch.device, n: int = 24) -> dict[tuple[str, str], float]:
    """Return the share of held-out replies every token of which is the greedy one.

    A lower bound of what examples/evaluate_tiny.py measures: it also counts a right answer after a
    working that differs.
    """
    rng = random.Random("held out")
    shares = {}
    for effort in EFFORTS:
        for tools in (False, True):
            contexts = [
                draw_context(rng, effort=effort, tools=tools, plain=i % 2 == 0) for i in range(6)
            ]
            items = [
                (k % 6, skill, draw_branch(contexts[k % 6], skill, rng, evaluation=True))
                for skill in (("tool",) if tools else PLAIN)
                for k in range(n)
            ]
            batch = collate(contexts, [(i, b) for i, _, b in items], net.cfg.window, groups=8)
            logits, targets, _ = net(batch.to(device))
            fits = torch.ones(len(batch.tokens), dtype=torch.bool)
            fits[batch.targets >= 0] = (logits.argmax(-1) == targets).cpu()
            hits = defaultdict(list)
            for group in batch.groups:
                whole = fits[group.rows].view(group.count, -1).all(1)
                for j, ok in zip(group.members, whole.tolist(), strict=True):
                    hits[items[j][1]].append(ok)
            for skill, right in hits.items():
                shares[skill, effort] = sum(right) / len(right)
    return shares


class Trainer:
    """The network, its two optimisers, and the step that has been reached."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.device = torch.device(args.device)
        self.net = TinyGptOss(Config()).to(self.device)
        named = list(self.net.named_parameters())
        matrices = [p for name, p in named if name.endswith(MATRICES)]
        others = [p for name, p in named if not name.endswith(MATRICES)]
        self.muon = Muon(matrices, lr=args.lr, weight_decay=0.02)
        self.adamw = torch.optim.AdamW(
            others, lr=args.lr, betas=(0.9, 0.97), weight_decay=0.0, fused=True
        )
        self.step = 0

    def rate(self) -> float:
        """Return the learning rate: linear warm-up, then a cosine to 1 % of the peak."""
        args = self.args
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / args.steps)))
        return args.lr * min(1.0, (self.step + 1) / args.warmup) * (0.01 + 0.99 * cosine)

    def advance(self) -> tuple[float, float, int]:
        """Take one step; return the loss, the balance loss and the number of tokens."""
        args = self.args
        for group in self.adamw.param_groups + self.muon.param_groups:
            group["lr"] = self.rate()
        batch = draw_batch(f"{args.seed}/{self.step}", self.net.cfg, args.prefixes, args.branches)
        logits, targets, balance = self.net(batch.to(self.device))
        loss = F.cross_entropy(logits, targets)
        (loss + args.balance * balance).backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.adamw.step()
        self.muon.step()
        self.net.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach()), float(balance.detach()), len(batch.tokens)

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "model": self.net.state_dict(),
            "adamw": self.adamw.state_dict(),
            "muon": self.muon.state_dict(),
            "step": self.step,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = torch.load(path, map_location=self.device)
        self.net.load_state_dict(state["model"])
        self.adamw.load_state_dict(state["adamw"])
        self.muon.load_state_dict(state["muon"])
        self.step = state["step"]


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for last.pt")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/last.pt")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--balance", type=float, default=0.01, help="weight of the balance loss")
    parser.add_argument("--prefixes", type=int, default=4, help="contexts in a step")
    parser.add_argument("--branches", type=int, default=18, help="replies for each context")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate-every", type=int, default=100, help="steps; saves as well")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    """Train to the end, reporting every 20 steps."""
    args = arguments()
    trainer = Trainer(args)
    args.out.mkdir(parents=True, exist_ok=True)
    last = args.out / "last.pt"
    if args.resume:
        trainer.load(last)
    begin, tokens, losses = time.perf_counter(), 0, []
    while trainer.step < args.steps:
        loss, balance, count = trainer.advance()
        tokens += count
        losses.append(loss)
        if trainer.step % 20 == 0:
            seconds = time.perf_counter() - begin
            print(
                f"step {trainer.step}  loss {sum(losses) / len(losses):.4f}  "
                f"balance {balance:.3f}  {tokens / seconds:.0f} tokens/s  {seconds:.0f} s",
                flush=True,
            )
            losses.clear()
        if trainer.step % args.evaluate_every == 0 or trainer.step == args.steps:
            trainer.save(last)
            shares = evaluate(trainer.net, trainer.device)
            for effort in EFFORTS:
                row = (f"{s} {100 * x:.0f}" for (s, e), x in shares.items() if e == effort)
                print(f"  held out, {effort}: {', '.join(row)}", flush=True)


if __name__ == "__main__":
    main()
