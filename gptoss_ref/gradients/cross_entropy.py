"""Cross entropy of the next token, and its gradient.

    L = −(1/n) Σ_t m_t log p_t(target_t)       p_t = softmax(logits_t), n = Σ_t m_t

m_t is 1 for the positions that count and 0 for the others (padding, a user's turn). As
log p(y) = ℓ_y − log Σ_v exp ℓ_v,

    dℓ_tv = (m_t / n) (p_tv − [v = target_t])

Each row of dℓ sums to zero. The mean is over the positions that count, not over all: dividing by
all of them scales every gradient by the share of padding. Source: chain rule;
``torch.nn.functional.cross_entropy``, which like this computes in float32 at least.
"""

import numpy as np

from gptoss_ref.numerics import FLOAT32, Array, Policy, get_policy


def cross_entropy(
    logits: Array,
    targets: Array,
    mask: Array | None = None,
    *,
    count: float | None = None,
    policy: str | Policy = FLOAT32,
) -> tuple[float, Array]:
    """The loss (natural logarithm) and its gradient (T, V).

    Args:
        logits: (T, V).
        targets: (T,) token ids; one that the mask leaves out is not looked at.
        mask: (T,) booleans, True where a position counts; None counts all.
        count: what to divide by instead of the number that counts, for rows that are a part of a
            larger batch.

    >>> logits = np.log([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    >>> loss, d_logits = cross_entropy(logits, np.array([1, 2]), np.array([True, False]))
    >>> round(loss, 4), d_logits  # log 4
    (1.3863, array([[ 0.5 , -0.75,  0.25],
           [ 0.  ,  0.  ,  0.  ]], dtype=float32))
    """
    policy = get_policy(policy)
    rows = np.arange(len(logits)) if mask is None else np.flatnonzero(mask)
    count = len(rows) if count is None else count
    own = targets[rows]
    d_logits = np.zeros(logits.shape, policy.dtype)
    shifted = logits[rows].astype(policy.dtype, copy=False)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)  # (n, V)
    at_target = shifted[np.arange(len(rows)), own]  # (n,)
    p = np.exp(shifted, out=shifted)
    total = p.sum(axis=-1, keepdims=True)  # (n, 1)
    loss = float(np.sum(np.log(total[:, 0]) - at_target, dtype=np.float64)) / count
    p /= total
    p[np.arange(len(rows)), own] -= 1
    d_logits[rows] = policy.round(p / policy.dtype.type(count))
    return loss, d_logits
