"""The HTTP endpoint adapter against a local server: what it observes, and every way to fail."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import socket
from functools import partial
from threading import Thread
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gptoss_ref
from gptoss_ref.errors import EndpointError, GptOssError, TokenError, TraceError
from gptoss_ref.model import Model
from gptoss_ref.verify.observe.adapters import endpoint, observe
from gptoss_ref.verify.observe.adapters.completions import Piece, Reply, Texts, parse
from gptoss_ref.verify.observe.adapters.transport import Answer
from gptoss_ref.verify.observe.observation import LogprobObservation
from tests.support.completions_server import FAILING, serving

TEXT = "The three small boats left the harbour at dawn, and 27 + 58 = 85 was painted on the first."

NOISE = 2e-4
"""The server computes in float32, and sums prompts of other lengths in another order."""


@pytest.fixture(scope="module")
def tiny() -> Model:
    """On NumPy: nothing is compiled while a client waits."""
    return gptoss_ref.load("tiny", backend="numpy")


@pytest.fixture(scope="module")
def prompt(tiny: Model) -> list[int]:
    return tiny.tokenizer.encode(TEXT)


@pytest.fixture(scope="module")
def observing(tiny: Model) -> Any:
    return partial(observe, tokenizer=tiny.tokenizer, config=tiny.config, timeout=20)


def own_log_probabilities(model: Model, tokens: Any) -> np.ndarray:
    rows = model(tokens).astype(np.float64)
    rows -= rows.max(-1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(-1, keepdims=True))


def assert_shows(observation: LogprobObservation, model: Model) -> None:
    """Every number is the model's own log-probability, at the right place."""
    expected = own_log_probabilities(model, observation.tokens)
    for row, token, value in zip(
        observation.rows, observation.ids, observation.values, strict=True
    ):
        assert abs(expected[row, token] - value) < NOISE
    assert observation.agreement(model(observation.tokens)).largest < NOISE


@pytest.mark.parametrize("behaviour", ["openai", "openai-text", "llama-cpp-python"])
def test_an_echoing_server_shows_every_position(
    behaviour: str, tiny: Model, prompt: list[int], observing: Any
) -> None:
    with serving(tiny, tiny.tokenizer, behaviour) as server:
        observation = observing(server.url, prompt)
    assert observation.tokens.tolist() == prompt
    late = behaviour == "llama-cpp-python"  # which gives nothing for its first entry
    assert observation.positions.tolist() == list(range(late, len(prompt)))
    assert len(observation) > 15 * len(prompt)
    assert_shows(observation, tiny)
    assert any("1983" in sentence for sentence in observation.left_out) == late
    assert observation.producer == f"{server.url}/v1/completions tiny"


def test_a_server_without_echo_shows_what_it_generates(
    tiny: Model, prompt: list[int], observing: Any
) -> None:
    with serving(tiny, tiny.tokenizer, "llama.cpp") as server:
        observation = observing(server.url, prompt, max_new_tokens=5, top=7)
        assert [body["max_tokens"] for body in server.asked] == [1, 5]
    assert observation.tokens[: len(prompt)].tolist() == prompt
    assert len(observation.tokens) == len(prompt) + 5
    assert observation.positions.tolist() == list(range(len(prompt) - 1, len(prompt) + 4))
    assert [len(top) for top in observation.top] == [7] * 5
    assert "does not echo prompts: only 5 positions" in observation.left_out[0]
    assert_shows(observation, tiny)


def test_another_window_shows_at_later_positions_only(
    tiny: Model, prompt: list[int], observing: Any
) -> None:
    wider = dataclasses.replace(tiny.config, sliding_window=tiny.config.sliding_window + 1)
    with serving(Model(wider, tiny.weights, backend="numpy"), tiny.tokenizer) as server:
        observation = observing(server.url, prompt)
    off = np.abs(observation.differences(tiny(prompt)))
    far = observation.rows >= tiny.config.sliding_window
    assert off[far].max() > 1e-3 > NOISE > off[~far].max()


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", "/v1/completions"])
def test_the_address_may_be_written_in_many_ways(
    suffix: str, tiny: Model, prompt: list[int], observing: Any
) -> None:
    with serving(tiny, tiny.tokenizer) as server:
        assert len(observing(server.url + suffix, prompt[:4])) > 0
        assert len(observing(server.url.removeprefix("http://") + suffix, prompt[:4])) > 0


EXPECTED = {
    "silent": "within 0.4 seconds",
    "dripping": "within 0.4 seconds",
    "closing": "connection broke",
    "cut-off": "cut off after 43 bytes",
    "half-json": "not JSON, or was cut off",
    "html": "not JSON.*Welcome",
    "error-page": "refuses the prompt: HTTP 500.*Internal error",
    "refusing": "refuses the prompt: HTTP 400: the context holds 8 tokens",
    "forbidding": "HTTP 401: no key",
    "redirecting": "HTTP 307",
    "too-large": "exceeds 64 MiB",
    "no-choices": "no choices",
    "no-logprobs": "gives no log-probabilities",
    "strange-logprobs": "is unknown: expected tokens",
    "not-a-number": "log-probability nan",
    "raw-logits": "expected a number of at most 0",
}


@pytest.mark.parametrize("behaviour", FAILING)
def test_each_failure_is_one_clear_error(
    behaviour: str, tiny: Model, prompt: list[int], observing: Any
) -> None:
    timeout = 0.4 if behaviour in ("silent", "dripping") else 20
    with (
        serving(tiny, tiny.tokenizer, behaviour) as server,
        pytest.raises((EndpointError, TraceError), match=EXPECTED[behaviour]) as caught,
    ):
        observing(server.url, prompt, timeout=timeout)
    assert server.url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_down(prompt: list[int], observing: Any) -> None:
    with socket.socket() as held:  # a port without a listener
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(EndpointError, match=f"{url}.*no server there"):
            observing(url, prompt)


@pytest.mark.parametrize(
    "url",
    ["ftp://127.0.0.1", "http://", "http://127.0.0.1:notaport", "http://[::1", "", "http://a b/v1"],
)
def test_an_address_that_is_none(url: str, prompt: list[int], observing: Any) -> None:
    with pytest.raises(EndpointError, match=r"expected an address|port|IPv6|control characters"):
        observing(url, prompt)


@pytest.mark.parametrize(
    ("prompt", "said"), [([], "prompt is empty"), ([1, 99999], "99999"), ([-1], "-1")]
)
def test_a_prompt_that_is_none_is_not_sent(prompt: list[int], said: str, observing: Any) -> None:
    """It is looked at before a server is: there is none."""
    with pytest.raises(TokenError, match=said):
        observing("http://127.0.0.1:9", prompt)


@pytest.mark.parametrize("behaviour", ["openai-text", "llama.cpp"])
def test_a_server_that_reads_other_tokens(
    behaviour: str, tiny: Model, prompt: list[int], observing: Any
) -> None:
    """The tokens join to the same text, but no tokenizer would cut it like this."""
    letters = [token for character in TEXT[:20] for token in tiny.tokenizer.encode(character)]
    with serving(tiny, tiny.tokenizer, behaviour) as server:
        if behaviour == "llama.cpp":  # takes ids as they are
            assert len(observing(server.url, letters)) > 0
            return
        with pytest.raises(EndpointError, match=r"(reads|tokenizes) the prompt"):
            observing(server.url, letters)


def test_late_log_probabilities_of_a_prompt_without_sense(tiny: Model, observing: Any) -> None:
    """Where the tokens do not tell, a second request does."""
    noise = [int(t) for t in np.random.default_rng(1).integers(300, 450, 12)]
    noise = tiny.tokenizer.encode(tiny.tokenizer.decode(noise))
    with serving(tiny, tiny.tokenizer, "llama-cpp-python") as server:
        assert_shows(observing(server.url, noise), tiny)


def test_a_model_that_ends_at_once(tiny: Model, prompt: list[int], observing: Any) -> None:
    with (
        serving(tiny, tiny.tokenizer, "ending") as server,
        pytest.raises(EndpointError, match="the model generates nothing after this one"),
    ):
        observing(server.url, prompt)


def test_the_key_and_the_model_are_sent(tiny: Model, prompt: list[int], observing: Any) -> None:
    with serving(tiny, tiny.tokenizer) as server:
        observing(server.url, prompt[:3], model="another", api_key="secret")
        assert {body["model"] for body in server.asked} == {"another"}


def test_texts_that_name_several_tokens_name_none(tiny: Model) -> None:
    texts = Texts(tiny.tokenizer, tiny.config.vocab_size)
    halves = [t for t in range(256) if tiny.tokenizer.token_bytes(t)[0] >= 0x80]
    assert len(halves) > 1
    assert texts.id(Piece("\N{REPLACEMENT CHARACTER}", -1.0)) is None
    assert texts.id(Piece("", -1.0)) is None
    assert texts.id(Piece("?", -1.0, bytes=tiny.tokenizer.token_bytes(halves[0]))) == halves[0]
    assert texts.id(Piece("token_id:77", -1.0)) == 77
    assert texts.id(Piece("anything", -1.0, id=5)) == 5
    for token in tiny.tokenizer.encode(TEXT):
        assert texts.likeliest(Piece(tiny.tokenizer.decode([token]), -1.0)) == token


@pytest.mark.parametrize("value", [None, [], {}, {"choices": {}}, {"choices": [None]}, 3, "text"])
def test_answers_of_another_kind(value: Any) -> None:
    with pytest.raises(EndpointError, match="somewhere: not a completions answer"):
        parse(value, "somewhere")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["tokens", "token_logprobs", "top_logprobs", "content", "token", "logprob", "bytes"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(JSON)
def test_whatever_a_server_writes_is_understood_or_refused(value: Any) -> None:
    """Nothing but the one error; what is understood has the types that it declares."""
    reply = Reply()
    with contextlib.suppress(EndpointError):
        reply = parse({"choices": [{"logprobs": value}], "usage": value}, "somewhere")
    for entry in reply.entries:
        for piece in (entry.chosen, *entry.top):
            assert isinstance(piece.text, str)
            assert piece.logprob is None or piece.logprob < math.inf or math.isnan(piece.logprob)
            assert type(piece.id) in (int, type(None))
            assert type(piece.bytes) in (bytes, type(None))
    assert type(reply.prompt_tokens) in (int, type(None))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "connection broke"),
        (b"\x00\xff not HTTP at all\r\n\r\n", "connection broke"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}", "connection broke"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "cut off"),
        (b"HTTP/1.1 200 OK\r\n" + b"X" * 70_000 + b": 1\r\n\r\n", "connection broke"),
        (b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe", "is not JSON"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000, "is not JSON"),
    ],
)
def test_answers_that_are_not_http(
    raw: bytes, message: str, prompt: list[int], observing: Any
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connected, _ = listening.accept()
            with connected, contextlib.suppress(OSError):
                connected.recv(65536)
                connected.sendall(raw)

        thread = Thread(target=answer)
        thread.start()
        with pytest.raises(EndpointError, match=message):
            observing(f"http://127.0.0.1:{listening.getsockname()[1]}", prompt)
        thread.join()


class TestObservation:
    """What an observation refuses to hold."""

    @pytest.mark.parametrize(
        ("top", "message"),
        [
            ({}, "no log-probabilities"),
            ({0: {}}, "no log-probabilities"),
            ({3: {1: -1.0}}, "positions 3 to 3: expected 0 to 2"),
            ({-1: {1: -1.0}}, "positions -1 to -1"),
            ({0: {9: -1.0}}, "token 9: expected 0 to 8"),
            ({0: {1: 0.5}}, "at most 0"),
            ({0: {1: float("nan")}}, "nan"),
            ({0: {1: -0.1, 2: -0.1}}, "sum to 1.81"),
        ],
    )
    def test_impossible_numbers(self, top: Any, message: str) -> None:
        with pytest.raises(TraceError, match=message):
            LogprobObservation([0, 1, 2], top, vocab_size=9)

    def test_flat_numbers_in_order_of_position(self) -> None:
        seen = LogprobObservation([4, 5, 6], {2: {1: -3.0}, 0: {8: -1.0, 2: -2.0}}, vocab_size=9)
        assert seen.rows.tolist() == [0, 0, 2]
        assert seen.ids.tolist() == [8, 2, 1]
        assert seen.values.tolist() == [-1.0, -2.0, -3.0]
        assert len(seen) == 3

    def test_a_token_that_cannot_come(self) -> None:
        seen = LogprobObservation([0], {0: {0: 0.0, 1: -np.inf}}, vocab_size=2)
        assert seen.agreement(np.array([[50.0, -50.0]])).largest < 1e-12


# --- garbage ---

NUMBERS = st.one_of(
    st.floats(),
    st.floats(-20, 0),
    st.integers(-5, 500),
    st.sampled_from([10**400, -(10**400), 10**30, 2**63, True, "−1"]),
)
NAMES = st.one_of(
    st.sampled_from(
        [" the", "a", "\ud800", "", "\x1b[31m", "token_id:3", "token_id:" + "9" * 5000]
    ),
    st.text(max_size=3),
)
BYTES = st.one_of(
    st.none(),
    st.lists(st.integers(0, 300), max_size=4),
    st.sampled_from([7, 10**15, "raw", [10**30], {}]),
)
NESTED = st.recursive(
    st.none() | NUMBERS | NAMES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["token", "logprob", "content", "tokens", "a"]), inner)
    ),
    max_leaves=8,
)
PIECES = st.fixed_dictionaries(
    {"token": NAMES | NESTED, "logprob": NUMBERS | NESTED},
    optional={"bytes": BYTES, "id": NUMBERS | NESTED, "top_logprobs": NESTED},
)


@st.composite
def content(draw: st.DrawFn) -> Any:
    """The newer form; now and then an entry is as it should be."""
    entries = draw(st.lists(PIECES, min_size=1, max_size=3))
    for entry in entries:
        if draw(st.booleans()):
            entry["top_logprobs"] = draw(st.lists(PIECES, max_size=3))
    return {"content": entries}


@st.composite
def lists(draw: st.DrawFn) -> Any:
    """The older form; lists of one length, mostly."""
    size = draw(st.integers(0, 4))
    top = st.none() | st.dictionaries(NAMES, NUMBERS, max_size=3) | NESTED
    return {
        "tokens": draw(st.lists(NAMES | NESTED, min_size=size, max_size=size)),
        "token_logprobs": draw(st.lists(NUMBERS, min_size=size, max_size=size) | NESTED),
        "top_logprobs": draw(st.lists(top, min_size=size, max_size=size) | NESTED),
    }


ANSWERS = st.one_of(
    NESTED,
    st.fixed_dictionaries(
        {"choices": st.tuples(st.fixed_dictionaries({"logprobs": content() | lists() | NESTED}))},
        optional={"usage": NESTED | st.fixed_dictionaries({"prompt_tokens": NUMBERS | st.just(2)})},
    ),
)


@settings(max_examples=300)
@given(data=st.data())
def test_garbage_is_understood_or_refused(observing: Any, data: st.DataObject) -> None:
    """Whatever a server says: log-probabilities that can be judged, or one clear error."""

    def request(url: str, body: Any = None, **_: Any) -> Answer:
        value = data.draw(ANSWERS)
        text = json.dumps(value)  # as it would have come: what JSON cannot say is not tried
        return Answer(data.draw(st.sampled_from([200, 200, 200, 400])), json.loads(text), text)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(GptOssError):
        patch.setattr(endpoint, "request", request)
        observation = observing("http://127.0.0.1:1", [64, 65])
        assert np.isfinite(observation.values).any()
        observation.producer.encode()


def test_nothing_but_zero_probabilities() -> None:
    with pytest.raises(TraceError, match="all its tokens the probability 0"):
        LogprobObservation([1, 2], {0: {3: -math.inf}}, vocab_size=5)
