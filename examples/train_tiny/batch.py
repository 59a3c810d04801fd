"""Contexts and branches as the tensors of one training step.

All tokens stand on one flat axis: the prefixes, padded on the left to one length P, then groups of
branches of similar length, padded on the right. Only attention needs to know the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from data import Branch, Context

TAIL = 32  # of a prefix's last keys, seen by branches in a windowed layer; at least window - 1
MASKED = -1e30
Record = TypeVar("Record", "Batch", "Group")


@dataclass(frozen=True)
class Group:
    """Branches of similar length: ``count`` rows, which of them are which, and their masks."""

    rows: slice  # of the flat axis
    count: int
    members: list[int]  # index of each row's branch
    prefix: Tensor  # (B,) index of each row's prefix
    full: Tensor  # (B,L,P+L), added to the scores
    windowed: Tensor  # (B,L,TAIL+L)


@dataclass(frozen=True)
class Batch:
    """One step's tokens."""

    tokens: Tensor  # (N,)
    positions: Tensor
    valid: Tensor  # 1 where there is a token and not padding
    targets: Tensor  # the next token where the loss counts, else -1
    num_prefixes: int
    prefix_length: int
    prefix_full: Tensor  # (prefixes,P,P)
    prefix_windowed: Tensor
    groups: list[Group]

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on ``device``."""
        groups = [_moved(group, device) for group in self.groups]
        return replace(_moved(self, device), groups=groups)


def _moved(record: Record, device: torch.device) -> Record:
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    moved = {name: v.to(device) for name, v in values.items() if isinstance(v, Tensor)}
    return replace(record, **moved)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _added(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape).masked_fill(~seen, MASKED)


def collate(
    contexts: Sequence[Context],
    branches: Sequence[tuple[int, Branch]],
    window: int,
    groups: int = 4,
) -> Batch:
    """Lay out branches, each given with the index of its context."""
    prefixes = [context.tokens for context in contexts]
    longest = _up(max(map(len, prefixes)), 32)
    tokens: list[int] = []
    positions: list[int] = []
    valid: list[int] = []
    targets: list[int] = []
    for prefix in prefixes:
        pad = longest - len(prefix)
        tokens += [0] * pad + prefix
        positions += [0] * pad + list(range(len(prefix)))
        valid += [0] * pad + [1] * len(prefix)
        targets += [-1] * longest
    i = torch.arange(longest)
    lengths = torch.tensor([len(prefix) for prefix in prefixes])
    present = i[None, :] >= (longest - lengths)[:, None]  # (prefixes,P)
    seen = (i[:, None] >= i[None, :])[None] & present[:, None, :]
    near = (i[:, None] - i[None, :] < window)[None]

    laid_out = []
    order = sorted(range(len(branches)), key=lambda j: len(branches[j][1].tokens))
    size = -(-len(order) // groups)
    for at in range(0, len(order), size):
        members = order[at : at + size]
        length = _up(max(len(branches[j][1].tokens) for j in members), 16)
        start = len(tokens)
        for j in members:
            owner, branch = branches[j]
            n, pad = len(branch.tokens), length - len(branch.tokens)
            following = zip(branch.tokens[1:], branch.loss[1:], strict=True)
            tokens += branch.tokens + [0] * pad
            positions += [len(prefixes[owner]) + t for t in range(length)]
            valid += [1] * n + [0] * pad
            targets += [token if mine else -1 for token, mine in following] + [-1] * (pad + 1)
        prefix = torch.tensor([branches[j][0] for j in members])
        rows = slice(start, len(tokens))
        full, windowed = _branch_masks(present[prefix], length, window)
        laid_out.append(Group(rows, len(members), members, prefix, full, windowed))
    return Batch(
        torch.tensor(tokens),
        torch.tensor(positions),
        torch.tensor(valid, dtype=torch.float32),
        torch.tensor(targets),
        len(prefixes),
        longest,
        _added(seen),
        _added(seen & near),
        laid_out,
    )


def _branch_masks(present: Tensor, length: int, window: int) -> tuple[Tensor, Tensor]:
    """Return the masks of branches of ``length``; ``present`` (B,P) marks prefix tokens."""
    count = len(present)
    t = torch.arange(length)
    own = t[:, None] >= t[None, :]
    full = torch.cat((present[:, None, :].expand(-1, length, -1), own.expand(count, -1, -1)), 2)
    tail = torch.arange(-TAIL, 0)
    near = own & (t[:, None] - t[None, :] < window)
    windowed = torch.cat((t[:, None] - tail[None, :] < window, near), 1)
    return _added(full), _added(windowed).expand(count, -1, -1).contiguous()
