"""The key/value cache: decoding and prefill in chunks equal one pass; failures leave no trace."""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ref import cache as cache_module
from gptoss_ref.cache import KVCache
from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import GptOssError, TokenError
from gptoss_ref.model import Model
from gptoss_ref.numerics import FLOAT32
from tests.support.checks_model import (
    SUBJECTS,
    Subject,
    build_model,
    check_logits,
    in_chunks,
    tap_names,
    taps_of,
)
from tests.support.distance import relative_l2
from tests.support.strategies import (
    SEEDS,
    chunkings,
    model_configs,
    random_arrays,
    random_tokens,
    small_config,
)

SHORT_WINDOWS = (1, 2, 3, 7, 13)


@SUBJECTS
@given(config=model_configs(windows=SHORT_WINDOWS), seed=SEEDS, data=st.data())
def test_any_chunking_equals_one_pass(
    subject: Subject, config: ModelConfig, seed: int, data: st.DataObject
) -> None:
    """Chunks shorter, as long as and longer than the window, onto empty and full rings."""
    length = data.draw(st.integers(1, 50))
    chunks = data.draw(chunkings(length))
    arrays, tokens = random_arrays(config, seed), random_tokens(config, length, seed)
    model = subject.build(config, arrays)
    assert relative_l2(in_chunks(model, tokens, chunks), model(tokens)) <= subject.same


@pytest.mark.parametrize("policy", ["float64", "float32"])
@pytest.mark.parametrize("window", SHORT_WINDOWS)
def test_decoding_token_by_token(policy: str, window: int) -> None:
    """Against the twin, which has no cache; the ring goes round several times."""
    config = small_config(window=window)
    arrays, tokens = random_arrays(config, window), random_tokens(config, 40, window)
    check_logits(build_model, config, arrays, tokens, policy, chunks=[1] * 40)


@SUBJECTS
@given(SEEDS, st.lists(st.integers(1, 9), min_size=2, max_size=8))
def test_interleaved_caches_do_not_meet(subject: Subject, seed: int, sizes: list[int]) -> None:
    """Two conversations on one model, a chunk each in turn."""
    config = small_config(window=4)
    model = subject.build(config, random_arrays(config, seed))
    texts = [random_tokens(config, sum(sizes), seed + i) for i in range(2)]
    caches = [model.new_cache() for _ in texts]
    rows: list[list[np.ndarray]] = [[], []]
    start = 0
    for size in sizes:
        for text, cache, out in zip(texts, caches, rows, strict=True):
            out.append(model(text[start : start + size], cache=cache))
        start += size
    for text, out in zip(texts, rows, strict=True):
        assert relative_l2(np.concatenate(out), model(text)) <= subject.same


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


@SUBJECTS
def test_a_full_layer_keeps_every_position(subject: Subject) -> None:
    config = small_config(window=6, layers=1, layer_types=("full_attention",))
    model = subject.build(config, random_arrays(config, 0))
    cache = model.new_cache()
    model(random_tokens(config, 300, 0), cache=cache)
    values = 300 * 2 * config.num_key_value_heads * config.head_dim
    assert bytes_of(cache) >= values * model.policy.dtype.itemsize


def test_decoding_copies_nothing_that_is_stored() -> None:
    """Over 1,000 tokens a full layer moves a few times, a windowed one once in W + 1 tokens."""
    config = small_config(window=20, layers=2, layer_types=("full_attention", "sliding_attention"))
    layers = KVCache(config, FLOAT32).layers
    new = np.zeros((1, config.num_key_value_heads, config.head_dim), np.float32)
    homes: list[set[int]] = [set(), set()]
    kept = []  # nothing is freed, so no two arrays share an id
    for length in range(1000):
        for n, layer in enumerate(layers):
            layers[n], keys, values, positions = layer.extended(new + length, new - length, length)
            seen = np.arange(0 if n == 0 else max(0, length - 19), length + 1)
            assert np.array_equal(positions, seen)
            assert np.array_equal(keys[:, 0, 0], seen)
            assert np.array_equal(values[:, 0, 0], -seen)
            assert np.shares_memory(keys, layers[n].keys)
            assert np.shares_memory(values, layers[n].values)
            homes[n].add(id(layers[n].keys))
            kept.append(layers[n])
    assert len(homes[0]) <= 5  # 64, 128, 256, 512, 1024 positions
    assert len(homes[1]) <= 1 + 1000 // 21


@SUBJECTS
@given(size=st.integers(1, 9), stored=st.integers(0, 12), length=st.integers(1, 40))
def test_a_long_pass_goes_in_chunks(subject: Subject, size: int, stored: int, length: int) -> None:
    """With and without a cache, and whatever the cache held; afterwards it goes on as usual."""
    config = small_config(window=5)
    model = subject.build(config, random_arrays(config, 1))
    tokens = random_tokens(config, stored + length + 1, length)
    whole = model(tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptoss_ref.model.CHUNK", size)
        assert relative_l2(model(tokens), whole) <= subject.same
        cache = model.new_cache()
        if stored:
            model(tokens[:stored], cache=cache)
        ours = model(tokens[stored:-1], cache=cache)
        assert relative_l2(ours, whole[stored:-1]) <= subject.same
        assert cache.length == stored + length
        assert relative_l2(model(tokens[-1:], cache=cache), whole[-1:]) <= subject.same


def test_a_tap_sees_whole_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptoss_ref.model.CHUNK", 4)
    config = small_config()
    model = build_model(config, random_arrays(config, 1), "float32")
    taps = taps_of(partial(model, random_tokens(config, 9, 0)))
    assert list(taps) == tap_names(config)
    assert {len(value) for name, value in taps.items() if "weights" not in name} == {9}


@SUBJECTS
def test_a_pass_that_fails_between_chunks(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some chunks of some blocks are done: the cache is as it was."""
    monkeypatch.setattr("gptoss_ref.model.CHUNK", 4)
    config = small_config(window=5)
    model = subject.build(config, random_arrays(config, 1))
    tokens = random_tokens(config, 30, 1)
    expected = model(tokens)
    cache = model.new_cache()
    model(tokens[:7], cache=cache)
    for calls in range(1, 4 * config.num_hidden_layers, 3):
        count = iter(range(calls))

        def experts(*args: Any, count: Any = count, **options: Any) -> Any:
            if next(count, None) is None:
                raise Broken
            return model.backend.experts(*args, **options)

        broken = dataclasses.replace(model.backend, experts=experts)
        failing = Model(config, model.weights, policy=subject.policy, backend=broken)
        with pytest.raises(Broken):
            failing(tokens[7:23], cache=cache)
        assert cache.length == 7
    ours = model(tokens[7:], cache=cache)
    assert relative_l2(ours, expected[7:]) <= subject.same


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


@SUBJECTS
@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt, MemoryError])
@given(where=st.integers(1, 60), stored=st.integers(0, 20), chunk=st.integers(1, 12))
def test_a_failed_pass_leaves_the_cache_as_it_was(
    subject: Subject, error: type[BaseException], where: int, stored: int, chunk: int
) -> None:
    """Whichever tap raises: the same chunk again, or another one, gives what it should."""
    config = small_config(window=5)
    model = subject.build(config, random_arrays(config, 1))
    tokens = random_tokens(config, stored + chunk, 1)
    cache = model.new_cache()
    if stored:
        model(tokens[:stored], cache=cache)
    other = random_tokens(config, chunk, 2)
    with pytest.raises(error):
        model(other, cache=cache, tap=raising_at(where, error))
    assert cache.length == stored
    ours = model(tokens[stored:], cache=cache)
    assert relative_l2(ours, model(tokens)[stored:]) <= subject.same


@SUBJECTS
def test_bad_tokens_leave_the_cache_as_it_was(subject: Subject) -> None:
    config = small_config(window=5)
    model = subject.build(config, random_arrays(config, 1))
    tokens = random_tokens(config, 12, 1)
    cache = model.new_cache()
    model(tokens[:8], cache=cache)
    for bad in ([], [config.vocab_size], [1, -1]):
        with pytest.raises(TokenError):
            model(bad, cache=cache)
    assert relative_l2(model(tokens[8:], cache=cache), model(tokens)[8:]) <= subject.same


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


@SUBJECTS
@pytest.mark.parametrize(("stored", "chunk"), [(9, 4), (3, 1), (9, 8), (60, 10)])
def test_an_interrupt_anywhere_leaves_the_cache_as_it_was(
    subject: Subject, stored: int, chunk: int
) -> None:
    """At every line of cache.py: afterwards the cache holds all of the chunk or none of it."""
    config = small_config(window=6, layers=3)
    model = subject.build(config, random_arrays(config, 0))
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
        assert relative_l2(rest, expected[-len(rest) :]) <= subject.same, (
            f"line {point} of cache.py"
        )
        if not interrupted:
            break
        point += 1
    assert point > 10  # the interrupts did happen


def test_two_passes_at_once_on_one_cache_are_an_error() -> None:
    """The one that ends last says so; what the other left stays."""
    config = small_config()
    model = build_model(config, random_arrays(config, 0), "float32")
    cache, sound = model.new_cache(), model.new_cache()
    for each in (cache, sound):
        model([1, 2, 3], cache=each)

    def meanwhile(name: str, _: Any) -> None:
        if name == "logits":
            other = threading.Thread(target=model, args=([5, 6], cache))
            other.start()
            other.join()

    with pytest.raises(GptOssError, match="from 3 to 5 positions"):
        model([4], cache=cache, tap=meanwhile)
    assert cache.length == 5
    model([5, 6], cache=sound)
    np.testing.assert_array_equal(model([7], cache=cache), model([7], cache=sound))
