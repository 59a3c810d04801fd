"""Token embedding: a row of a table.

    x_t = W[token_t]

gpt-oss does not scale the rows, adds no position to them, and does not share the table with the
unembedding. Source: OpenAI gpt-oss reference, ``Transformer.embedding``.
"""

from gptoss_ref.numerics import FLOAT32, Array, Policy, get_policy, widen


def embedding(tokens: Array, weight: Array, *, policy: str | Policy = FLOAT32) -> Array:
    """Rows of ``weight`` (V, D) for ``tokens`` (T,) ints in [0, V): (T, D) in ``policy.dtype``.

    Token ids are not checked here (NumPy would wrap a negative one); the model checks them.

    >>> import numpy as np
    >>> table = np.array([[0x0000, 0x3F80], [0x4000, 0xC000]], np.uint16)  # bfloat16 bits
    >>> embedding(np.array([1, 0, 1]), table)
    array([[ 2., -2.],
           [ 0.,  1.],
           [ 2., -2.]], dtype=float32)
    """
    policy = get_policy(policy)
    return policy.round(widen(weight[tokens], policy.dtype))  # (T, D)
