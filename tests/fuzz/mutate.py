"""Random inputs from seeds: bytes are flipped, inserted and deleted, JSON values exchanged."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|\w+|\s+|.', re.DOTALL)

VALUES: tuple[bytes, ...] = (
    b"null", b"true", b"false", b"0", b"-1", b"1", b"0.5", b"1e400", b"-1e400", b"NaN", b"Infinity",
    b"2147483648", b"9223372036854775808", b"1" + 30 * b"0", b"1" + 400 * b"0", b"9" * 5000,
    b'""', b'"x"', b'"\\ud800"', b'"\\u0000"', b'"\\u001b[31m"', b'"../x.safetensors"', b"[]",
    b"{}", b"[[]]", b'{"a":1}', b"[1,2,3]", 600 * b"[", b"\xff", b"\xc3", b"",
)  # fmt: skip
"""What JSON values, keys and signs are exchanged for."""


@cache
def tokens(seed: bytes) -> tuple[bytes, ...]:
    """The tokens of a JSON text: strings, numbers, words, blanks, signs."""
    return tuple(_TOKEN.findall(seed))


def mutated_text(seeds: Sequence[bytes], rng: random.Random, words: Sequence[bytes] = ()) -> bytes:
    """One of the seeds with one to four of its tokens exchanged, doubled, moved or left out."""
    chosen = rng.choice(seeds)
    if rng.random() < 0.15:
        return mutated_bytes((chosen,), rng)
    parts = list(tokens(chosen))
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = int(rng.random() * len(parts))
        kind = rng.random()
        if kind < 0.45:
            parts[at] = rng.choice(VALUES)
        elif kind < 0.65:
            parts[at] = rng.choice(words or parts)
        elif kind < 0.8:
            parts[at] = rng.choice(parts)
        elif kind < 0.9:
            parts.insert(at, parts[int(rng.random() * len(parts))])
        elif len(parts) > 1:
            del parts[at]
    return b"".join(parts)


def mutated_bytes(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """One of the seeds with one to eight changes of bytes, or the joint of two of them."""
    data = bytearray(rng.choice(seeds))
    if rng.random() < 0.1:
        other = rng.choice(seeds)
        data[int(rng.random() * (len(data) + 1)) :] = other[int(rng.random() * len(other)) :]
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        size = len(data)
        at = int(rng.random() * size) if size else 0
        kind = rng.random()
        if kind < 0.5 and size:
            data[at] = int(rng.random() * 256)
        elif kind < 0.6 and size:
            data[at] ^= 1 << int(rng.random() * 8)
        elif kind < 0.7:
            data[at:at] = rng.randbytes(int(rng.random() * 9))
        elif kind < 0.8:
            del data[at : at + 1 + int(rng.random() * 8)]
        elif kind < 0.9 and size:
            begin = int(rng.random() * size)
            data[at : at + 8] = data[begin : begin + 8]
        else:
            del data[at:]
    return bytes(data)
