"""Solutions to chapter 1: tokens become rows of a table."""

import numpy as np


def embedding(tokens, weight):
    """tokens (T,) of whole numbers, weight (V, D) -> x (T, D)."""
    return weight[tokens]  # one row for each token; a token that comes twice gets its row twice


def embedding_as_product(tokens, weight):
    """The same as a product: a matrix that has a single 1 in each row picks rows of the table.

    This costs V · D multiplications a token, nearly all of them by zero: more than half a billion
    in the released models. Indexing costs none, so that is how everybody does it.
    """
    one_hot = np.zeros((len(tokens), len(weight)))  # (T, V)
    one_hot[np.arange(len(tokens)), tokens] = 1
    return one_hot @ weight  # (T, V) @ (V, D) = (T, D)
