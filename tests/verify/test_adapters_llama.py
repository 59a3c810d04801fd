"""llama.cpp itself, where llama-cpp-python and gguf are installed: logits and the HTTP server.

The bundled model goes to llama.cpp as a GGUF file. llama.cpp rounds YaRN's range, so its logits
have to lie at the mutant of that name and away from the specification.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gptoss_ref
from gptoss_ref.errors import TraceError
from gptoss_ref.model import Model
from gptoss_ref.verify.mutants import by_name
from gptoss_ref.verify.observe.adapters import from_llama, observe
from gptoss_ref.verify.replay.evaluate import predict
from tests.support.strategies import small_config

TEXT = "The three small boats left the harbour at dawn, and 27 + 58 = 85 was painted on the first. "

try:
    import gguf
    import llama_cpp
except ImportError:
    gguf = llama_cpp = None

installed = pytest.mark.skipif(
    llama_cpp is None, reason="llama-cpp-python and gguf are not installed"
)


@pytest.fixture(scope="module")
def tiny() -> Model:
    return gptoss_ref.load("tiny", policy="float64", backend="numpy")


@pytest.fixture(scope="module")
def tokens(tiny: Model) -> list[int]:
    return tiny.tokenizer.encode(TEXT * 2 + "The")


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sys.path.insert(0, str(Path(__file__).parents[2] / "benches"))
    try:
        from write_gguf import write_gguf
    finally:
        sys.path.pop(0)
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf("tiny", path)
    return path


def llama(path: Path, **options: Any) -> Any:
    return llama_cpp.Llama(str(path), n_threads=1, verbose=False, **{"n_ctx": 512, **options})


def typical(theirs: np.ndarray, ours: np.ndarray) -> float:
    """Median over tokens of the relative L2 distance: a few tokens go to other experts."""
    return float(np.median(np.linalg.norm(theirs - ours, axis=-1) / np.linalg.norm(ours, axis=-1)))


@installed
def test_its_logits_are_those_of_a_rounded_yarn(
    gguf_file: Path, tiny: Model, tokens: list[int]
) -> None:
    """The file holds the same weights: nothing but the range of YaRN is farther off than rounding.

    It is judged as bfloat16: llama.cpp's activations have 8 bits, and a scale per 32 values.
    """
    theirs = from_llama(llama(gguf_file, logits_all=True), tokens, tiny.config)
    assert list(theirs) == ["logits"]
    logits = theirs["logits"].astype(np.float64)
    mutant = by_name("yarn-truncated")
    assert mutant.applies(tiny.config, tiny.weights)
    ops = mutant.apply()
    rounded = predict(tiny.weights, tiny.config, ops, tokens, {}, ["logits"], tiny.policy)
    narrow = gptoss_ref.load("tiny", policy="bfloat16", backend="numpy")
    rounding = typical(narrow(tokens), tiny(tokens))
    assert typical(logits, rounded["logits"]) < rounding
    assert typical(logits, tiny(tokens)) > 3 * rounding


@installed
def test_it_reads_text_as_the_same_tokens(gguf_file: Path, tiny: Model) -> None:
    theirs = llama(gguf_file)
    for text in (TEXT, "Zwölf Boote, 12 Häfen;\n\n\tund 1234567 — \N{SAILBOAT}", "<|start|>user"):
        ours = list(tiny.tokenizer.encoding.encode(text, allowed_special="all"))
        assert theirs.tokenize(text.encode(), add_bos=False, special=True) == ours


@installed
def test_objects_that_do_not_fit(gguf_file: Path, tiny: Model, tokens: list[int]) -> None:
    with pytest.raises(TraceError, match="set logits_all"):
        from_llama(llama(gguf_file), tokens, tiny.config)
    with pytest.raises(TraceError, match="holds 64 tokens, but the prompt has"):
        from_llama(llama(gguf_file, logits_all=True, n_ctx=64), tokens, tiny.config)


def test_without_llama_cpp(tiny: Model, tokens: list[int]) -> None:
    """Nothing is imported for it, so that anything may stand in for the object."""
    with pytest.raises(TraceError, match=r"list: expected a llama_cpp\.Llama"):
        from_llama([], tokens, tiny.config)
    other = small_config()
    with pytest.raises(TraceError, match="476 tokens: expected 71"):
        from_llama(StandIn(tiny), [1, 2, 3], other)
    trace = from_llama(StandIn(tiny), tokens, tiny.config)
    assert np.array_equal(trace["logits"], tiny(tokens).astype(np.float32))


class StandIn:
    """What is used of llama_cpp.Llama."""

    _logits_all = True

    def __init__(self, model: Model) -> None:
        self.model = model
        self.scores = np.zeros((512, model.config.vocab_size), np.float32)

    def n_vocab(self) -> int:
        return self.model.config.vocab_size

    def n_ctx(self) -> int:
        return len(self.scores)

    def reset(self) -> None:
        self.scores[:] = 0

    def eval(self, tokens: list[int]) -> None:
        self.scores[: len(tokens)] = self.model(tokens)


@contextlib.contextmanager
def llama_server(path: Path) -> Iterator[str]:
    """llama-cpp-python's own HTTP server on a free port of loopback."""
    uvicorn = pytest.importorskip("uvicorn")
    app = pytest.importorskip("llama_cpp.server.app")
    settings = pytest.importorskip("llama_cpp.server.settings")
    model = settings.ModelSettings(
        model=str(path), n_ctx=512, logits_all=True, verbose=False, n_threads=1
    )
    server_settings = settings.ServerSettings(host="127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    application = app.create_app(server_settings=server_settings, model_settings=[model])
    config = uvicorn.Config(application, host="127.0.0.1", port=port, log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        end = time.monotonic() + 30
        while not server.started and time.monotonic() < end:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@installed
def test_its_server_shows_its_logits(gguf_file: Path, tiny: Model, tokens: list[int]) -> None:
    """Echoed log-probabilities, one position late: each is found where the logits have it."""
    with llama_server(gguf_file) as url:
        seen = observe(url, tokens, tokenizer=tiny.tokenizer, config=tiny.config)
    assert any("llama-cpp-python#1983" in sentence for sentence in seen.left_out)
    assert seen.positions.tolist() == list(range(1, len(tokens)))
    logits = from_llama(llama(gguf_file, logits_all=True), tokens, tiny.config)["logits"]
    agreement = seen.agreement(logits)
    assert agreement.largest < 1e-3
    assert agreement.top1 == 1
    assert seen.agreement(tiny(tokens)).rms > 0.1


def test_the_blocks_of_a_gguf_file_hold_the_same_values() -> None:
    """ggml: 32 values of one block as two halves of 16, read back by hand."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benches"))
    try:
        from write_gguf import ggml_blocks
    finally:
        sys.path.pop(0)
    rng = np.random.default_rng(0)
    weight = SimpleNamespace(
        blocks=rng.integers(0, 256, (3, 5, 2, 16), dtype=np.uint8),
        scales=rng.integers(0, 256, (3, 5, 2), dtype=np.uint8),
    )
    packed = ggml_blocks(weight)  # type: ignore[arg-type]
    assert packed.shape == (3, 5, 2, 17)
    assert np.array_equal(packed[..., 0], weight.scales)
    for value in range(32):
        byte, shift = weight.blocks[..., value // 2], 4 * (value % 2)
        ggml_byte, ggml_shift = packed[..., 1 + value % 16], 4 * (value // 16)
        assert np.array_equal(byte >> shift & 15, ggml_byte >> ggml_shift & 15)
