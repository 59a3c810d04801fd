"""What is fuzzed: for each reader its seeds, how inputs are made of them, and what must hold."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import struct
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import gptoss_ref as gr
from gptoss_ref._files import parse_object
from gptoss_ref.chat.hf_tokenizer import read_tokenizer_json, tokenizer_json
from gptoss_ref.chat.parser import HarmonyParser
from gptoss_ref.chat.tokenizer import small_harmony
from gptoss_ref.checkpoint.reader import _entries, _read_header
from gptoss_ref.checkpoint.shards import parse_weight_map
from gptoss_ref.config import GPT_OSS_20B, ModelConfig
from gptoss_ref.errors import GptOssError, HarmonyError
from gptoss_ref.tracing.npz import read_npz
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.observe.adapters import endpoint, transport
from gptoss_ref.verify.observe.adapters.completions import Texts, parse
from gptoss_ref.verify.vectors.judge import judge_case
from gptoss_ref.verify.vectors.operations import OPERATIONS
from gptoss_ref.verify.vectors.results import _from_json
from gptoss_ref.verify.vectors.suite import cases_of, expected
from tests.fuzz.mutate import mutated_bytes, mutated_text, tokens

HERE = Path("fuzzed")  # the name in error messages


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        name: as on the command line and in docs/reliability.md.
        reads: what it reads, in words.
        seeds: valid inputs.
        make: an input out of the seeds.
        run: reads one input; raises GptOssError if it refuses it, anything else is a crash.
    """

    name: str
    reads: str
    seeds: tuple[bytes, ...]
    make: Callable[[tuple[bytes, ...], random.Random], bytes]
    run: Callable[[bytes], object]


# --- safetensors and traces: a header of JSON before the data ---


def _safetensors(arrays: dict[str, Any], metadata: dict[str, str] | None = None) -> bytes:
    from safetensors.numpy import save

    return save(arrays, metadata)


def _with_header(seeds: tuple[bytes, ...], rng: random.Random) -> bytes:
    """Mostly a changed header whose length is right; else any change."""
    seed = rng.choice(seeds)
    if rng.random() < 0.25:
        return mutated_bytes((seed,), rng)
    size = 8 + struct.unpack("<Q", seed[:8])[0]
    header = mutated_text((seed[8:size],), rng)
    return struct.pack("<Q", len(header)) + header + seed[size:]


def _read_safetensors(data: bytes) -> None:
    header, start = _read_header(io.BytesIO(data), len(data), HERE)
    header.pop("__metadata__", None)
    found = list(_entries(header, start, len(data), HERE))
    covered = start
    for tensor in found:
        assert tensor.begin == covered <= tensor.end
        covered = tensor.end
    assert covered == len(data)


def _small_config(vocab_size: int) -> ModelConfig:
    return dataclasses.replace(
        GPT_OSS_20B,
        num_hidden_layers=1,
        num_experts=5,
        experts_per_token=2,
        vocab_size=vocab_size,
        hidden_size=8,
        intermediate_size=6,
        head_dim=10,
        num_attention_heads=6,
        num_key_value_heads=2,
        layer_types=None,
        eos_token_ids=(),
        pad_token_id=None,
    )


def _trace_seeds() -> tuple[bytes, ...]:
    config = _small_config(71)
    rng = np.random.default_rng(3)
    about = {"tokens": [1, 2, 3], "config": config, "producer": "fuzz"}
    seeds = []
    for names in (["logits"], ["embedding", "block.0.attn.q", "block.0.mlp.expert_indices"]):
        arrays = {}
        for name in names:
            shape = gr.tracing.taps.expected_shape(name, config, 3)
            indices = name.endswith("expert_indices")
            arrays[name] = (
                rng.integers(0, config.num_experts, shape)
                if indices
                else rng.normal(size=shape).astype(np.float32)
            )
        seeds.append(_saved(Trace(arrays, **about)))
    return tuple(seeds)


def _saved(trace: Trace) -> bytes:
    path = _scratch() / "seed.trace"
    trace.save(path)
    return path.read_bytes()


@cache
def _scratch() -> Path:
    """A folder in memory where there is one: some readers map a file."""
    memory = Path("/dev/shm")
    place = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
    _KEPT.append(place)
    return Path(place.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []  # removed at the end


def _read_trace(data: bytes) -> None:
    path = _scratch() / "fuzzed.trace"
    path.write_bytes(data)
    trace = Trace.load(path)
    for name in trace:
        assert trace[name].shape == trace.shape_of(name)


# --- JSON texts ---


def _texts(*values: Any) -> tuple[bytes, ...]:
    return tuple(json.dumps(value, separators=(",", ":")).encode() for value in values)


def _with_words(seeds: tuple[bytes, ...], rng: random.Random) -> bytes:
    return mutated_text(seeds, rng, _words(seeds))


@cache
def _words(seeds: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """The strings and numbers of all seeds: a key of one may stand in another."""
    every = {token for seed in seeds for token in tokens(seed)}
    return tuple(sorted(token for token in every if token[:1] in b'"-0123456789'))


def _read_config(data: bytes) -> None:
    config = ModelConfig.from_json(parse_object(data, HERE))
    again = ModelConfig.from_json(json.loads(json.dumps(config.to_json("hf"))))
    # A factor up to 1 is no scaling; Hugging Face's dialect says so without a factor.
    factor = max(1.0, config.rope_scaling_factor)
    assert again == dataclasses.replace(config, rope_scaling_factor=factor)


def _read_index(data: bytes) -> None:
    weight_map = parse_weight_map(parse_object(data, HERE), HERE)
    for name in weight_map.values():
        assert Path(name).name == name
        assert name.endswith(".safetensors")


def _tokenizer_seeds() -> tuple[bytes, ...]:
    return _texts(tokenizer_json(small_harmony(260)))


def _read_tokenizer(data: bytes) -> None:
    path = _scratch() / "tokenizer.json"
    path.write_bytes(data)
    read_tokenizer_json(path)


# --- .npz ---


def _npz_seeds() -> tuple[bytes, ...]:
    seeds = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, logits=np.arange(6.0).reshape(2, 3), tokens=np.array([1, 2]))
        seeds.append(file.getvalue())
    return tuple(seeds)


def _read_npz(data: bytes) -> None:
    for values in read_npz(io.BytesIO(data), HERE).values():
        assert isinstance(values, np.ndarray)
        assert not values.dtype.hasobject


# --- Harmony streams: two bytes a token ---


@cache
def _tokenizer() -> Any:
    return small_harmony(300)


def _harmony_seeds() -> tuple[bytes, ...]:
    tokenizer = _tokenizer()
    texts = (
        "<|start|>user<|message|>hi<|end|>",
        "<|start|>assistant<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>"
        "final<|message|>85<|return|>",
        "<|start|>assistant to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}"
        "<|call|>",
        "<|start|>functions.f to=assistant<|channel|>commentary<|message|>é😀<|end|>",
    )
    seeds = []
    for text in texts:
        ids: list[int] = []
        for part in text.replace("<|", "\0<|").replace("|>", "|>\0").split("\0"):
            if part in tokenizer.special:
                ids.append(tokenizer.special[part])
            else:
                ids += tokenizer.encode(part)
        seeds.append(struct.pack(f"<{len(ids)}H", *ids))
    return tuple(seeds)


def _stream(seeds: tuple[bytes, ...], rng: random.Random) -> bytes:
    """Whole tokens exchanged, left out, doubled and put in; of one seed or two."""
    ids = list(_ids(rng.choice(seeds)))
    if rng.random() < 0.3:
        ids += _ids(rng.choice(seeds))
    size = _tokenizer().vocab_size
    for _ in range(rng.choice((1, 2, 4, 8))):
        at = int(rng.random() * len(ids)) if ids else 0
        kind = rng.random()
        # special tokens, which are the last ids, come as often as all others
        new = int(rng.random() * size) if rng.random() < 0.5 else size - 1 - int(rng.random() * 20)
        if kind < 0.4 and ids:
            ids[at] = new
        elif kind < 0.7:
            ids.insert(at, new)
        elif ids:
            del ids[at]
    return struct.pack(f"<{len(ids)}H", *ids)


def _ids(data: bytes) -> Iterable[int]:
    return struct.unpack(f"<{len(data) // 2}H", data[: len(data) // 2 * 2])


def _read_stream(data: bytes) -> None:
    tokenizer = _tokenizer()
    ids = [number for number in _ids(data) if number < tokenizer.vocab_size]
    ids = [number for number in ids if tokenizer._bytes[number] is not None]
    role = "assistant" if len(ids) % 2 else None
    parser = HarmonyParser(tokenizer, role=role)  # tolerant: never raises
    for number in ids:
        parser.feed(number)
    parser.finish()
    for message in parser.messages:
        message.text.encode()
    strict = HarmonyParser(tokenizer, role=role, strict=True)
    try:
        for number in ids:
            strict.feed(number)
        strict.finish()
    except HarmonyError:
        assert parser.repairs
    else:
        assert not parser.repairs


# --- what a server answers ---


class _Echoing:
    """In the place of a server: answers the same to every question."""

    url, name, top = "http://fuzzed", "fuzzed", 20

    def __init__(self, answer: transport.Answer) -> None:
        self.answer = answer

    def complete(self, prompt: Any, **_: Any) -> transport.Answer:
        return self.answer


@cache
def _served() -> tuple[ModelConfig, Texts]:
    tokenizer = _tokenizer()
    config = _small_config(tokenizer.vocab_size)
    return config, Texts(tokenizer, config.vocab_size)


def _answer_seeds() -> tuple[bytes, ...]:
    top = {"a": -1.5, "b": -0.5, "token_id:7": -9}
    legacy = {
        "tokens": ["a", "b", "c"],
        "token_logprobs": [None, -0.5, -1],
        "top_logprobs": [None, top, top],
    }
    item = {"token": "a", "logprob": -1.5, "id": 64, "bytes": [97]}
    content = [{**item, "top_logprobs": [item, {"token": "b", "logprob": -2}]}]
    usage = {"prompt_tokens": 2, "completion_tokens": 1}
    return _texts(
        {"choices": [{"text": "abc", "logprobs": legacy}], "usage": usage},
        {"choices": [{"text": "a", "logprobs": {"content": content}}], "usage": usage},
        {"error": {"message": "no"}},
    )


def _read_answer(data: bytes) -> None:
    answer = transport._judged("http://fuzzed", 200, data)
    answer.complaint()
    reply = parse(answer.value, "http://fuzzed")
    config, texts = _served()
    server: Any = _Echoing(answer)
    ids = [64, 65]
    if len(reply.entries) >= len(ids):
        seen = endpoint._of_echo(server, ids, ids, reply, texts, config)
    else:
        seen = endpoint._of_generated(server, ids, reply, texts, config)
    assert np.isfinite(seen.values).any()


def _http_seeds() -> tuple[bytes, ...]:
    body = b'{"choices": []}'
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n" + body,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nf\r\n" + body + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 503 busy\r\nRetry-After: 3\r\n\r\nnot now",
    )


def _response(seeds: tuple[bytes, ...], rng: random.Random) -> bytes:
    return mutated_text(seeds, rng, _HTTP_WORDS)


_HTTP_WORDS = (
    b"Content-Length", b"Transfer-Encoding", b"chunked", b"gzip", b"\r\n", b": ", b"HTTP/1.1",
    b"-1", b"ffffffffffffffffff", b"0x10", b"1_0", b"99999999999", b"100", b"304", b"999", b"+5",
)  # fmt: skip


class _Socket:
    """Answers with fixed bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def sendall(self, data: bytes) -> None: ...

    def makefile(self, *_: Any, **__: Any) -> io.BytesIO:
        return io.BytesIO(self.data)

    def shutdown(self, how: int) -> None: ...

    def close(self) -> None: ...


class _Connection(transport.HTTPConnection):
    data = b""

    def connect(self) -> None:
        self.sock: Any = _Socket(self.data)


class _NoTimer:
    """In the place of threading.Timer: nothing here takes long."""

    def __init__(self, *_: Any) -> None: ...

    def start(self) -> None: ...

    def cancel(self) -> None: ...


def _read_response(data: bytes) -> None:
    before = transport.HTTPConnection, transport.threading.Timer
    _Connection.data = data
    names: Any = transport
    names.HTTPConnection, names.threading.Timer = _Connection, _NoTimer
    try:
        transport.request("http://fuzzed:1/v1", timeout=1).complaint()
    finally:
        names.HTTPConnection, names.threading.Timer = before


# --- results of the vectors ---


@cache
def _case() -> Any:
    """The case with the fewest numbers."""
    every = (case for operation in OPERATIONS.values() for case in cases_of(operation))
    return min(every, key=lambda case: sum(v.size for v in expected(case).values()))


def _results_seeds() -> tuple[bytes, ...]:
    case = _case()
    return _texts({f"{case.id}/{name}": v.tolist() for name, v in expected(case).items()})


def _read_results(data: bytes) -> None:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise GptOssError("as vectors.results refuses it") from None
    arrays = _from_json(HERE, content)
    case = _case()
    outputs = {key.split("/")[1]: v for key, v in arrays.items() if key.startswith(f"{case.id}/")}
    known = {name: outputs[name] for name in case.operation.outputs if name in outputs}
    assert judge_case(case, known).verdict in ("right", "wrong", "missing", "not judged")


def _openai_config() -> dict[str, Any]:
    return GPT_OSS_20B.to_json("openai")


@cache
def targets() -> dict[str, Target]:
    """Every target by name."""
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(4, np.uint8)}
    index = {
        "metadata": {"total_size": 7},
        "weight_map": {f"t{i}": f"model-0000{i % 2}-of-00002.safetensors" for i in range(4)},
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    hf = GPT_OSS_20B.to_json("hf")
    new = {**hf, "rope_parameters": {"full_attention": rope}, "layer_types": None}
    del new["rope_scaling"], new["rope_theta"], new["initial_context_length"]
    made = (
        Target(
            "safetensors",
            "a safetensors file's header, against the size of the file",
            (_safetensors(arrays), _safetensors(arrays, {"format": "pt"}), _safetensors({})),
            _with_header,
            _read_safetensors,
        ),
        Target(
            "config-hf",
            "config.json in Hugging Face's dialect",
            _texts(hf, new),
            _with_words,
            _read_config,
        ),
        Target(
            "config-openai",
            "config.json in OpenAI's dialect",
            _texts(_openai_config()),
            _with_words,
            _read_config,
        ),
        Target("index", "model.safetensors.index.json", _texts(index), _with_words, _read_index),
        Target("tokenizer", "tokenizer.json", _tokenizer_seeds(), _with_words, _read_tokenizer),
        Target("trace", "a trace file, all arrays read", _trace_seeds(), _with_header, _read_trace),
        Target("npz", "an .npz file", _npz_seeds(), mutated_bytes, _read_npz),
        Target(
            "harmony",
            "a stream of Harmony tokens, tolerantly and strictly",
            _harmony_seeds(),
            _stream,
            _read_stream,
        ),
        Target(
            "endpoint",
            "a completions answer with log-probabilities",
            _answer_seeds(),
            _with_words,
            _read_answer,
        ),
        Target("http", "an HTTP response", _http_seeds(), _response, _read_response),
        Target(
            "vectors",
            "results of the conformance suite, judged",
            _results_seeds(),
            _with_words,
            _read_results,
        ),
    )
    return {target.name: target for target in made}
