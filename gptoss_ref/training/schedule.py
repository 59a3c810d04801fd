"""Learning-rate schedules: the share of the peak rate at each step.

    warm-up    (s + 1) / warmup                                   for the first steps, s = 0, 1, …
    constant   1
    linear     1 − (1 − floor) u                                  u from 0 to 1 over the other steps
    cosine     floor + (1 − floor) (1 + cos π u) / 2
    wsd        1, then linearly down to the floor in the last fifth (warm-up, stable, decay)

Sources: Loshchilov and Hutter 2016, arXiv 1608.03983 (cosine); Hu et al. 2024, arXiv 2404.06395
(wsd).
"""

from __future__ import annotations

import math

from gptoss_ref.errors import GptOssError

SCHEDULES = ("constant", "linear", "cosine", "wsd")
WSD_DECAY = 0.2
"""Share of the steps in which ``wsd`` decays."""


def share(schedule: str, step: int, steps: int, *, warmup: int = 0, floor: float = 0.0) -> float:
    """The share of the peak rate at ``step`` (0 for the first) of ``steps``.

    Args:
        schedule: one of ``SCHEDULES``.
        warmup: number of steps in which the rate rises linearly; the first has 1/warmup of it.
        floor: share at the end.

    Raises:
        GptOssError: an unknown schedule.

    >>> [round(share("linear", s, 6, warmup=2), 2) for s in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if schedule not in SCHEDULES:
        raise GptOssError(f"unknown schedule {schedule!r}: expected one of {', '.join(SCHEDULES)}")
    if step < warmup:
        return (step + 1) / warmup
    u = (step - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return 1 - (1 - floor) * u
    if schedule == "cosine":
        return floor + (1 - floor) * (1 + math.cos(math.pi * u)) / 2
    if schedule == "wsd":
        return 1 - (1 - floor) * max(0.0, (u - (1 - WSD_DECAY)) / WSD_DECAY)
    return 1.0
