"""The key/value cache: decoding and prefill in chunks equal one pass; failures leave no trace."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest
from agreement import relative_l2
from checks_model import build_model, check_logits, in_chunks
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    SEEDS,
    chunkings,
    model_configs,
    random_arrays,
    random_tokens,
    small_config,
)

from gptoss_ref import cache as cache_module
from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import TokenError

SHORT_WINDOWS = (1, 2, 3, 7, 13)


@given(config=model_configs(windows=SHORT_WINDOWS), seed=SEEDS, data=st.data())
def test_any_chunking_equals_one_pass(config: ModelConfig, seed: int, data: st.DataObject) -> None:
    """Chunks shorter, as long as and longer than the window, onto empty and full rings."""
    length = data.draw(st.integers(1, 50))
    chunks = data.draw(chunkings(length))
    arrays, tokens = random_arrays(config, seed), random_tokens(config, length, seed)
    model = build_model(config, arrays, "float64")
    assert relative_l2(in_chunks(model, tokens, chunks), model(tokens)) <= 1e-12


@pytest.mark.parametrize("policy", ["float64", "float32"])
@pytest.mark.parametrize("window", SHORT_WINDOWS)
def test_decoding_token_by_token(policy: str, window: int) -> None:
    """Against the twin, which has no cache; the ring goes round several times."""
    config = small_config(window=window)
    arrays, tokens = random_arrays(config, window), random_tokens(config, 40, window)
    check_logits(build_model, config, arrays, tokens, policy, chunks=[1] * 40)


@given(SEEDS, st.lists(st.integers(1, 9), min_size=2, max_size=8))
def test_interleaved_caches_do_not_meet(seed: int, sizes: list[int]) -> None:
    """Two conversations on one model, a chunk each in turn."""
    config = small_config(window=4)
    model = build_model(config, random_arrays(config, seed), "float64")
    texts = [random_tokens(config, sum(sizes), seed + i) for i in range(2)]
    caches = [model.new_cache() for _ in texts]
    rows: list[list[np.ndarray]] = [[], []]
    start = 0
    for size in sizes:
        for text, cache, out in zip(texts, caches, rows, strict=True):
            out.append(model(text[start : start + size], cache=cache))
        start += size
    for text, out in zip(texts, rows, strict=True):
        assert relative_l2(np.concatenate(out), model(text)) <= 1e-12


def test_length_counts_positions() -> None:
    config = small_config()
    model = build_model(config, random_arrays(config, 0), "float32")
    cache = model.new_cache()
    assert cache.length == 0
    for size, total in ((3, 3), (1, 4), (9, 13)):
        model([1] * size, cache=cache)
        assert cache.length == total


def test_without_a_cache_nothing_is_remembered() -> None:
    config = small_config()
    model = build_model(config, random_arrays(config, 0), "float32")
    tokens = random_tokens(config, 9, 0)
    first = model(tokens)
    model(tokens[::-1])
    assert np.array_equal(model(tokens), first)


def bytes_of(cache: Any) -> int:
    """Bytes of every distinct array that is reachable from the cache, by looking, not by asking."""
    found: dict[int, int] = {}
    todo, seen = [cache], set()
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, np.ndarray):
            owner = item
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            found[id(owner)] = owner.nbytes
        elif isinstance(item, list | tuple):
            todo.extend(item)
        elif type(item).__module__ == cache_module.__name__:
            todo.extend(vars(item).values())
    return sum(found.values())


@pytest.mark.parametrize("decode", [False, True])
def test_a_ring_keeps_window_positions(decode: bool) -> None:
    """With windowed layers only, the cache does not grow with the history."""
    config = small_config(window=6, layers=2, layer_types=("sliding_attention",) * 2)
    model = build_model(config, random_arrays(config, 0), "float32")
    cache = model.new_cache()
    for chunk in [1] * 50 if decode else [20, 30]:
        model([3] * chunk, cache=cache)
    per_position = 2 * config.num_key_value_heads * config.head_dim * 4
    # one more position and one more copy are an implementation's own business; fifty are not
    assert bytes_of(cache) <= 2 * 2 * (6 + 1) * per_position
    assert bytes_of(cache) >= 2 * 5 * per_position
    assert cache.nbytes == bytes_of(cache)


def test_a_full_layer_keeps_every_position() -> None:
    config = small_config(window=6, layers=1, layer_types=("full_attention",))
    model = build_model(config, random_arrays(config, 0), "float64")
    cache = model.new_cache()
    model(random_tokens(config, 300, 0), cache=cache)
    assert bytes_of(cache) >= 300 * 2 * config.num_key_value_heads * config.head_dim * 8


class Broken(Exception):
    """What the failing tap raises."""


def raising_at(where: int, error: type[BaseException]) -> Callable[[str, Any], None]:
    """A tap that raises at its ``where``-th call."""
    calls = 0

    def tap(name: str, value: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == where:
            raise error

    return tap


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt, MemoryError])
@given(where=st.integers(1, 60), stored=st.integers(0, 20), chunk=st.integers(1, 12))
def test_a_failed_pass_leaves_the_cache_as_it_was(
    error: type[BaseException], where: int, stored: int, chunk: int
) -> None:
    """Whichever tap raises: the same chunk again, or another one, gives what it should."""
    config = small_config(window=5)
    model = build_model(config, random_arrays(config, 1), "float64")
    tokens = random_tokens(config, stored + chunk, 1)
    cache = model.new_cache()
    if stored:
        model(tokens[:stored], cache=cache)
    other = random_tokens(config, chunk, 2)
    with pytest.raises(error):
        model(other, cache=cache, tap=raising_at(where, error))
    assert cache.length == stored
    ours = model(tokens[stored:], cache=cache)
    assert relative_l2(ours, model(tokens)[stored:]) <= 1e-12


def test_bad_tokens_leave_the_cache_as_it_was() -> None:
    config = small_config(window=5)
    model = build_model(config, random_arrays(config, 1), "float64")
    tokens = random_tokens(config, 12, 1)
    cache = model.new_cache()
    model(tokens[:8], cache=cache)
    for bad in ([], [config.vocab_size], [1, -1]):
        with pytest.raises(TokenError):
            model(bad, cache=cache)
    assert relative_l2(model(tokens[8:], cache=cache), model(tokens)[8:]) <= 1e-12


def interrupted_at(point: int, run: Callable[[], Any]) -> bool:
    """Run, with KeyboardInterrupt raised at the ``point``-th line that executes in cache.py.

    Returns whether the interrupt came before the run had ended.
    """
    lines = 0

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        lines += event in ("line", "return")
        if lines == point:
            raise KeyboardInterrupt
        return local

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        return local if frame.f_code.co_filename == cache_module.__file__ else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize(("stored", "chunk"), [(9, 4), (3, 1), (9, 8), (60, 10)])
def test_an_interrupt_anywhere_leaves_the_cache_as_it_was(stored: int, chunk: int) -> None:
    """At every line of cache.py: afterwards the cache holds all of the chunk or none of it."""
    config = small_config(window=6, layers=3)
    model = build_model(config, random_arrays(config, 0), "float64")
    tokens = random_tokens(config, stored + chunk + 1, 0)
    expected = model(tokens)
    point = 1
    while True:
        cache = model.new_cache()
        model(tokens[:stored], cache=cache)
        chunk_tokens = tokens[stored : stored + chunk]
        interrupted = interrupted_at(
            point, lambda cache=cache, chunk=chunk_tokens: model(chunk, cache=cache)
        )
        assert cache.length in (stored, stored + chunk)
        rest = model(tokens[cache.length :], cache=cache)
        assert relative_l2(rest, expected[-len(rest) :]) <= 1e-12, f"line {point} of cache.py"
        if not interrupted:
            break
        point += 1
    assert point > 10  # the interrupts did happen
