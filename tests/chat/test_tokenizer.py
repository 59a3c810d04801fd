"""The tokenizer against openai-harmony and tiktoken; the shipped ranks; tokenizer.json."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiktoken_ext.openai_public
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_ref.chat import (
    Tokenizer,
    harmony_specials,
    load_tokenizer,
    o200k_harmony,
    read_tokenizer_json,
    small_harmony,
    tokenizer_json,
)
from gptoss_ref.chat import pack_ranks as ranks
from gptoss_ref.chat.hf_tokenizer import _byte_table, _spell
from gptoss_ref.chat.split import LONG, O200K_PATTERN, SAFE_PATTERNS, _cl100k, _o200k, long_spaces
from gptoss_ref.errors import TokenError
from tests.support.harmony_oracle import SPELT, oracle, texts

# --- the shipped ranks ----------------------------------------------------------------------------


def test_the_shipped_ranks_are_the_released_ones() -> None:
    tokens = ranks.shipped_tokens()
    assert len(tokens) == ranks.O200K_TOKENS == 199_998
    digest = hashlib.sha256(ranks.released_text(tokens)).hexdigest()
    assert digest == "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"


def test_packing_and_unpacking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands of pack_ranks.py: out to the released file, and back to the packed one."""
    released, packed = tmp_path / "o200k_base.tiktoken", tmp_path / "packed.xz"
    assert ranks.main(["--unpack", str(released)]) == 0
    assert capsys.readouterr().out == f"{released}\n"
    assert hashlib.sha256(released.read_bytes()).hexdigest() == ranks.RELEASED_SHA256
    # packed anew it holds the same; its very bytes depend on the version of liblzma
    assert ranks.main([str(released), "--output", str(packed)]) == 0
    assert ranks.unpack(packed.read_bytes()) == ranks.shipped_tokens()
    assert str(packed) in capsys.readouterr().out

    released.write_bytes(released.read_bytes()[:-1])
    assert ranks.main([str(released), "--output", str(packed)]) == 2
    assert "o200k_base.tiktoken: SHA-256 is" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_damaged_ranks(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "ranks.xz"
    data = bytearray(ranks.RANKS_FILE.read_bytes())
    if damage == "cut":
        path.write_bytes(data[:-100])
    elif damage == "flipped":
        data[5000] ^= 1
        path.write_bytes(data)
    with pytest.raises(TokenError, match=r"ranks\.xz: (damaged: SHA-256|cannot read)"):
        ranks.shipped_tokens(path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"!!!! 0\n", "line 1: not base64"),
        (b"IQ== 1\n", "line 1: expected rank 0, found b'1'"),
        (b"IQ== 0\nIg==\n", "line 2: expected rank 1"),
        (b"IQ== 0 0\n", "line 1: expected rank 0, found b'0 0'"),
    ],
)
def test_broken_rank_files(text: bytes, match: str) -> None:
    with pytest.raises(TokenError, match=match):
        ranks.parse_released(text)


def test_a_few_tokens_packed() -> None:
    tokens = [*reversed(SINGLES), b"ab", b"c d", b"\xfe\x00"]
    assert ranks.unpack(ranks.pack(tokens)) == tokens
    assert ranks.parse_released(ranks.released_text(tokens)) == tokens


def test_packing_checks_what_it_assumes() -> None:
    for wrong in ([b"ab"] * 300, [*SINGLES, b""], [*SINGLES, b"a\xff"]):
        with pytest.raises(TokenError, match="256 one-byte tokens first"):
            ranks.pack(wrong)


# --- o200k_harmony --------------------------------------------------------------------------------


@given(texts)
@settings(max_examples=150)
def test_encode_as_the_oracle(text: str) -> None:
    tokens = o200k_harmony().encode(text)
    assert tokens == oracle().encode(text, disallowed_special=())
    assert o200k_harmony().decode(tokens) == text
    assert not any(o200k_harmony().is_special(token) for token in tokens)


@given(st.lists(st.integers(0, 201_087), max_size=20))
def test_decode_as_the_oracle(tokens: list[int]) -> None:
    assert o200k_harmony().decode(tokens) == oracle().decode(tokens)
    assert o200k_harmony().decode_bytes(tokens) == b"".join(
        o200k_harmony().token_bytes(token) for token in tokens
    )


def test_special_tokens_have_the_oracles_names() -> None:
    special = o200k_harmony().special
    assert sorted(set(special.values())) == list(range(199_998, 201_088))
    assert len(special) == 1091  # 1,090 ids, one of them with two names
    for number in range(199_998, 201_088):
        name = o200k_harmony().decode([number])
        assert name == oracle().decode([number])
        assert special[name] == number
    assert special["<|endofprompt|>"] == special["<|reserved_200018|>"] == 200_018
    named = {"startoftext": 199_998, "endoftext": 199_999, "return": 200_002, "constrain": 200_003}
    named |= {"channel": 200_005, "start": 200_006, "end": 200_007, "message": 200_008}
    for short, number in (named | {"call": 200_012}).items():
        assert o200k_harmony().special_id(short) == number
    assert sorted(o200k_harmony().stop_tokens) == sorted(
        oracle().stop_tokens_for_assistant_actions()
    )
    assert o200k_harmony().vocab_size == 201_088


def test_it_is_a_tiktoken_encoding() -> None:
    encoding = o200k_harmony().encoding
    assert encoding.n_vocab == 201_088
    for text in SPELT[:10]:
        assert encoding.encode(text, allowed_special="all") == [o200k_harmony().special[text]]
        assert o200k_harmony().encode(text) == encoding.encode(text, disallowed_special=())


@pytest.mark.parametrize("token", [-1, 201_088, 2**40])
def test_no_such_token(token: int) -> None:
    with pytest.raises(TokenError, match=f"token id {token}: no such token.* 0 to 201087"):
        o200k_harmony().decode([0, token])


def test_half_a_character() -> None:
    half = o200k_harmony().encode("🎉")[:1]
    assert "�" in o200k_harmony().decode(half)
    with pytest.raises(UnicodeDecodeError):
        o200k_harmony().decode(half, errors="strict")
    assert o200k_harmony().decode(o200k_harmony().encode("a\ud800b")) == "a�b"


def test_importing_chat_does_not_import_tiktoken() -> None:
    script = (
        "import sys, gptoss_ref.chat, gptoss_ref.chat.tokenizer, gptoss_ref.chat.render\n"
        "import gptoss_ref.chat.parser\n"
        "assert not {'tiktoken', 'regex', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# --- texts of any length --------------------------------------------------------------------------

MILLION = 1_000_000
MARK = "\N{COMBINING ACUTE ACCENT}"


@pytest.mark.parametrize(
    "unit",
    [
        *(" ", "\t", "\N{NO-BREAK SPACE}", "\u2028", "\n", "\r\n", " \n", "a", "A", "aB", "1"),
        *("1a", "=", ".\n", "\n/", "'s", MARK, "a" + MARK, "漢字", "ſ", "\x1c", "\0", "<|end|>"),
        *("\ud800", "aB1. \n漢" + MARK),
    ],
)
def test_a_million_of_anything(unit: str) -> None:
    """Each takes about a second; without the cut, spaces panic in tiktoken."""
    run = unit * (MILLION // len(unit))
    for text in (f".{run}x", run) if unit == " " else (f".{run}x",):
        decoded = o200k_harmony().encoding.decode(o200k_harmony().encode(text))
        assert decoded == text.replace("\ud800", "\N{REPLACEMENT CHARACTER}")


SPACES = [" ", "\t", "\v", "\x85", "\N{NO-BREAK SPACE}", "\u2028", "\N{IDEOGRAPHIC SPACE}"]
runs = st.builds(
    lambda units, length: ("".join(units) * length)[:length],
    st.lists(st.sampled_from([*SPACES, "   ", "\n", "\r", "\x1c"]), min_size=1, max_size=3),
    st.one_of(st.integers(1, 4), st.integers(LONG - 3, LONG + 3), st.just(9 * LONG)),
)


@given(
    st.lists(
        st.one_of(runs, texts, st.sampled_from(["a", "A", "'s", "1", ".", "/", MARK, "\n", "\0"])),
        max_size=6,
    ).map("".join),
    st.sampled_from(sorted(SAFE_PATTERNS)),
)
@settings(max_examples=200)
def test_cutting_changes_no_token(text: str, pattern: str) -> None:
    """Against tiktoken on the uncut text, which still bears runs of this length."""
    tokenizer = small_with(pattern)
    assert tokenizer.encode(text) == tokenizer.encoding.encode_ordinary(text)


@functools.cache
def small_with(pattern: str) -> Tokenizer:
    return small_harmony(1000, pattern=pattern)


def test_the_patterns_are_the_public_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktoken_ext.openai_public, "load_tiktoken_bpe", lambda *_, **__: {})
    assert tiktoken_ext.openai_public.o200k_base()["pat_str"] == O200K_PATTERN
    llama_3 = (  # meta-llama/Meta-Llama-3-8B, tokenizer.json
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    assert {O200K_PATTERN, ONE_DIGIT, llama_3} < SAFE_PATTERNS
    assert {_o200k(r"\p{N}{1,3}"), _o200k(r"\p{N}"), _cl100k(r"\p{N}{1,3}")} == {
        O200K_PATTERN, ONE_DIGIT, llama_3
    }  # fmt: skip


@pytest.mark.parametrize("text", [None, b"a", 3, ["a"]])
def test_what_is_no_text(text: Any) -> None:
    with pytest.raises(TokenError, match=f"encode {type(text).__name__}, expected a str"):
        o200k_harmony().encode(text)


def test_a_panic_of_tiktoken_is_a_token_error() -> None:
    """A pattern of one's own is not cut."""
    own = small_harmony(300, pattern=r"\s+(?!\S)|\s+|\S+")
    with pytest.raises(TokenError, match="tiktoken fails on a text of 1000000 characters"):
        own.encode(" " * MILLION)
    assert own.decode(own.encode("a b")) == "a b"


# --- smaller vocabularies and tokenizer.json ------------------------------------------------------

ONE_DIGIT = O200K_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
SMALL = small_harmony(1500, pattern=ONE_DIGIT)


def test_small_vocabularies_keep_the_order_of_the_specials() -> None:
    assert SMALL.vocab_size == 1500 + 21
    for name, number in o200k_harmony().special.items():
        if number <= 200_018:
            assert SMALL.special[name] == 1500 + number - 199_998
    assert SMALL.special == harmony_specials(1500, 200_018)
    assert SMALL.stop_tokens == (1500 + 4, 1500 + 14)
    assert len(SMALL.encode("2758")) == 4
    with pytest.raises(TokenError, match="ranks = 255: expected 256 to 199998"):
        small_harmony(255)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with SMALL's tokenizer.json."""
    path = tmp_path_factory.mktemp("small")
    (path / "tokenizer.json").write_text(json.dumps(tokenizer_json(SMALL)), encoding="utf-8")
    return path


def test_the_whole_tokenizer_json() -> None:
    """All but the vocabulary and the merges, which Hugging Face's tokenizers read below."""
    tokenizer = small_harmony(256, last=199_999)
    data = tokenizer_json(tokenizer)
    assert data["model"].pop("vocab") == {
        _spell(t): rank for rank, t in enumerate(tokenizer.tokens)
    }
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    level = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"pattern": {"Regex": O200K_PATTERN}, "behavior": "Isolated", "invert": False}
    assert data == {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": 256, "content": "<|startoftext|>", **added, "special": True},
            {"id": 257, "content": "<|endoftext|>", **added, "special": True},
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Split", **split}, {"type": "ByteLevel", **level}],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", **level},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "merges": [],
        },
    }


def test_the_characters_of_bytes_are_hugging_faces() -> None:
    """In the order of GPT-2's own table: the printable bytes, then the others."""
    table = _byte_table()
    assert sorted(table) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert sorted(table.values()) == [*range(256)]
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in (
        "".join(map(chr, range(0x80))),
        "".join(map(chr, range(0x80, 0x800))),
        "\U000c0000",
    ):
        ((spelt, _),) = level.pre_tokenize_str(text)
        assert bytes(table[character] for character in spelt) == text.encode()


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    """The same in Hugging Face's tokenizers."""
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    """The same read back by us."""
    return load_tokenizer(folder, SimpleNamespace(vocab_size=SMALL.vocab_size))


@given(text=texts)
@settings(max_examples=100)
def test_tokenizer_json_is_read_alike(text: str, theirs: Any, ours: Tokenizer) -> None:
    tokens = SMALL.encode(text)
    assert ours.encode(text) == tokens
    # Hugging Face's encode makes special tokens of text that spells one; the pieces show the rest
    if "<|" not in text:
        assert theirs.encode(text).ids == tokens
    assert SMALL.decode(tokens) == ours.decode(tokens) == text


def test_tokenizer_json_has_the_specials(theirs: Any, ours: Tokenizer) -> None:
    assert ours.vocab_size == SMALL.vocab_size == theirs.get_vocab_size()
    assert ours.tokens == SMALL.tokens
    for name, number in ours.special.items():
        assert SMALL.special[name] == number == theirs.token_to_id(name)
        assert theirs.encode(name).ids == [number]


def test_the_released_vocabulary_needs_no_folder(tmp_path: Path) -> None:
    config = SimpleNamespace(vocab_size=201_088)
    assert load_tokenizer(tmp_path / "nowhere", config) is o200k_harmony()


def _swap_merges(data: dict[str, Any]) -> None:
    merges = data["model"]["merges"]
    merges[0], merges[9] = merges[9], merges[0]


def _wrong_pair(data: dict[str, Any]) -> None:
    """` the` made of ` ` and `the`: tokens both, but the ranks below it leave another pair."""
    merges = data["model"]["merges"]
    at = next(i for i, pair in enumerate(merges) if "".join(pair) == "Ġthe")
    assert merges[at] != ["Ġ", "the"]
    merges[at] = ["Ġ", "the"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d["model"].update(type="Unigram"), "model.type is Unigram, expected BPE"),
        (lambda d: d["model"].update(dropout=0.1), "model.dropout is 0.1, expected none"),
        (lambda d: d.update(normalizer={"type": "NFC"}), "normalizer is .*expected null"),
        (lambda d: d["model"]["vocab"].pop("!"), r"model.vocab: '\"' has id 1, expected 0"),
        (lambda d: d["model"]["vocab"].update({"Ġ!漢": 1500}), "'漢' is not a byte-level"),
        (lambda d: d["added_tokens"][3].update(special=False), "is not special"),
        (lambda d: d["added_tokens"][3].update(id=7), "has id 7, expected at least 1500"),
        (lambda d: d["added_tokens"].pop(8), "no special token <|start|>"),
        (lambda d: d["model"]["merges"].pop(5), "does not follow from the lower ranks"),
        (_swap_merges, r"model.merges\[1\].*in order of the tokens' ids"),
        (_wrong_pair, "does not follow from the lower ranks"),
        (lambda d: d["pre_tokenizer"]["pretokenizers"].pop(0), r"is \['ByteLevel'\], expected"),
        (
            lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
            "expected an isolating Regex",
        ),
        (
            lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
            "expected add_prefix_space and use_regex to be false",
        ),
        (
            lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "("}),
            "the split pattern does not compile",
        ),
        (
            lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"(a+)+b"}),
            r"Split.pattern.Regex is .*\(a\+\)\+b.*, expected that of o200k_base or cl100k_base",
        ),
        (lambda d: d.pop("model"), "json: model is missing, expected an object"),
        (lambda d: d.update(model=[]), r"json: model is \[\], expected an object"),
        (lambda d: d["model"].update(vocab=[]), r"model.vocab is \[\], expected an object"),
        (lambda d: d["model"]["vocab"].update({"!": "x"}), "id of '!' is 'x', expected a whole"),
        (lambda d: d["model"]["vocab"].update({"": 1500}), "model.vocab: a token is empty"),
        (lambda d: d["model"]["merges"].__setitem__(0, ["a"]), r"merges\[0\] is \['a'\], expected"),
        (
            lambda d: d["model"]["merges"].__setitem__(0, "a b c"),
            r"merges\[0\] is 'a b c', expected",
        ),
        (lambda d: d["model"]["merges"].__setitem__(0, ["a", 3]), "expected a pair of tokens"),
        (
            lambda d: d["model"]["merges"].__setitem__(0, ["漢", "a"]),
            r"\[0\]: '漢': '漢' is not a byte",
        ),
        (lambda d: d["added_tokens"][0].update(id="x"), r"tokens\[0\].id is 'x', expected a whole"),
        (
            lambda d: d["added_tokens"][0].update(id=True),
            r"tokens\[0\].id is True, expected a whole",
        ),
        (
            lambda d: d["added_tokens"][0].update(id=10**12),
            r"added_tokens\[0\].id is 1000000000000, expected less than 1050097",
        ),
        (lambda d: d["added_tokens"][0].update(id=-1), "has id -1, expected at least 1500"),
        (
            lambda d: d["added_tokens"][0].update(content=""),
            "content is '', expected a unique name",
        ),
        (lambda d: d["added_tokens"][1].update(d["added_tokens"][0]), r"\[1\].content is '<|start"),
        (
            lambda d: d["model"]["vocab"].update({"a" * 10**6: 1500}),
            "a token has 1000000 bytes, expected at most 512",
        ),
        (lambda d: d["added_tokens"].append(3), r"added_tokens\[21\] is 3, expected an object"),
        (lambda d: d["added_tokens"][0].update(content="\ud800"), "expected whole characters"),
        (lambda d: d.update(pre_tokenizer=None), "pre_tokenizer is None, expected an object"),
        (
            lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": 3}),
            "pre_tokenizer.Split.pattern.Regex is 3, expected a text",
        ),
    ],
)
def test_other_tokenizers_are_refused(change: Any, match: str, tmp_path: Path) -> None:
    data = tokenizer_json(SMALL)
    change(data)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(TokenError, match=match) as caught:
        load_tokenizer(tmp_path, SimpleNamespace(vocab_size=SMALL.vocab_size))
    assert "tokenizer.json" in str(caught.value)


SPLIT = ("pre_tokenizer", "pretokenizers", 0)
LEVEL = ("pre_tokenizer", "pretokenizers", 1)
FIELDS: dict[tuple[Any, ...], tuple[str, str]] = {
    ("model",): ("model", "an object"),
    ("model", "type"): ("model.type", "a text"),
    ("model", "vocab"): ("model.vocab", "an object"),
    ("model", "merges"): ("model.merges", "a list"),
    ("added_tokens",): ("added_tokens", "a list"),
    ("added_tokens", 1, "content"): ("added_tokens[1].content", "a text"),
    ("added_tokens", 1, "special"): ("added_tokens[1].special", "true or false"),
    ("added_tokens", 1, "id"): ("added_tokens[1].id", "a whole number"),
    ("pre_tokenizer",): ("pre_tokenizer", "an object"),
    (*SPLIT, "type"): ("pre_tokenizer.pretokenizers[0].type", "a text"),
    (*LEVEL, "type"): ("pre_tokenizer.pretokenizers[1].type", "a text"),
    (*SPLIT, "pattern"): ("pre_tokenizer.Split.pattern", "an object"),
    (*SPLIT, "behavior"): ("pre_tokenizer.Split.behavior", "a text"),
    (*SPLIT, "invert"): ("pre_tokenizer.Split.invert", "true or false"),
    (*SPLIT, "pattern", "Regex"): ("pre_tokenizer.Split.pattern.Regex", "a text"),
    (*LEVEL, "add_prefix_space"): ("pre_tokenizer.ByteLevel.add_prefix_space", "true or false"),
    (*LEVEL, "use_regex"): ("pre_tokenizer.ByteLevel.use_regex", "true or false"),
}
SMALLEST = tokenizer_json(small_harmony(260))
SINGLES = [bytes([byte]) for byte in range(256)]


def refused(data: dict[str, Any], tmp_path: Path) -> str:
    """The error without the file's name, with which it begins."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(TokenError) as caught:
        read_tokenizer_json(path)
    file, _, said = str(caught.value).partition(": ")
    assert file == str(path)
    return said


@pytest.mark.parametrize("at", FIELDS, ids=lambda at: FIELDS[at][0])
def test_fields_that_are_missing_or_of_another_type(at: tuple[Any, ...], tmp_path: Path) -> None:
    name, kind = FIELDS[at]
    data = copy.deepcopy(SMALLEST)
    owner: Any = data
    for key in at[:-1]:
        owner = owner[key]
    owner[at[-1]] = 1.5
    assert refused(data, tmp_path) == f"{name} is 1.5, expected {kind}"
    del owner[at[-1]]
    missing = f"{name} is missing, expected {kind}"
    if at[-1] == "Regex":
        missing = "pre_tokenizer.Split: expected an isolating Regex, not inverted"
    assert refused(data, tmp_path) == missing


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (
            ("model", "continuing_subword_prefix"),
            "##",
            "model.continuing_subword_prefix is '##', e",
        ),
        (
            ("model", "end_of_word_suffix"),
            "</w>",
            "model.end_of_word_suffix is '</w>', expected no",
        ),
        (
            (*SPLIT, "invert"),
            True,
            "pre_tokenizer.Split: expected an isolating Regex, not inverted",
        ),
        (
            (*LEVEL, "use_regex"),
            True,
            "pre_tokenizer.ByteLevel: expected add_prefix_space and use_",
        ),
        ((*SPLIT,), 3, "pre_tokenizer.pretokenizers[0] is 3, expected an object"),
        (("pre_tokenizer", "pretokenizers"), {}, "pre_tokenizer.pretokenizers is {}, expected a l"),
        (("pre_tokenizer",), {"type": "ByteLevel"}, "pre_tokenizer is ['ByteLevel'], expected ['S"),
        (("pre_tokenizer", "pretokenizers"), [], "pre_tokenizer is [], expected ['Split', 'ByteLe"),
        (("added_tokens", 1), 3, "added_tokens[1] is 3, expected an object"),
        (("added_tokens", 1, "id"), 260 + 21 + 2**20, "added_tokens[1].id is 1048857, expected l"),
        (("model", "vocab", "!"), 1.5, "model.vocab: the id of '!' is 1.5, expected a whole numbe"),
        (("model", "vocab", "!"), 260, "model.vocab: '\"' has id 1, expected 0"),
        (("model", "vocab", "Ġ" * 513), 260, "model.vocab: a token has 513 bytes, expected at mos"),
        (("model", "merges", 0), ["", "Ġ"], "model.merges[0]: a token is empty, expected at leas"),
        (
            ("added_tokens", 1, "content"),
            "\udfff",
            "added_tokens[1].content is '\\udfff', expected w",
        ),
        (("model", "merges", 0), "Ġ\tt", "model.merges[0] is 'Ġ\\tt', expected a pair of tokens"),
        (("model", "merges", 0), 3, "model.merges[0] is 3, expected a pair of tokens"),
        (("model", "merges", 0), ["Ġ", "é"], "model.merges[0] = ['Ġ', 'é']: expected pairs that m"),
    ],
)
def test_values_that_cannot_be(at: tuple[Any, ...], value: Any, said: str, tmp_path: Path) -> None:
    data = copy.deepcopy(SMALLEST)
    owner: Any = data
    for key in at[:-1]:
        owner = owner[key]
    owner[at[-1]] = value
    assert refused(data, tmp_path).startswith(said)


def test_values_that_may_be(tmp_path: Path) -> None:
    """The largest gap and the longest token; merges as one text; a byte without a token."""
    path = tmp_path / "tokenizer.json"

    def read(change: Any) -> Tokenizer:
        data = copy.deepcopy(SMALLEST)
        change(data)
        path.write_text(json.dumps(data), encoding="utf-8")
        return read_tokenizer_json(path)

    largest = 260 + 21 + 2**20 - 1
    assert read(lambda d: d["added_tokens"][1].update(id=largest)).vocab_size == largest + 1
    joined = read(lambda d: d["model"].update(merges=[" ".join(m) for m in d["model"]["merges"]]))
    assert joined.tokens == small_harmony(260).tokens
    assert read(lambda d: d["model"].update(dropout=0.0, end_of_word_suffix="")).tokens
    data = copy.deepcopy(SMALLEST)
    vocab = data["model"]["vocab"]
    first = next(text for text, rank in vocab.items() if rank == 0)
    vocab[first + first] = vocab.pop(first)
    assert refused(data, tmp_path) == "model.vocab: no token for the byte 0x21"
    assert joined.name == str(path)
    data = copy.deepcopy(SMALLEST)
    assert len("".join(data["model"]["merges"].pop(0))) == 2
    assert refused(data, tmp_path).startswith("model.merges: the pair of token 256, ")
    path.unlink()
    with pytest.raises(TokenError, match=rf"^{path}: cannot read \(No such file"):
        read_tokenizer_json(path)


@pytest.mark.parametrize(
    ("tokens", "more"),
    [
        ([*SINGLES, *(b"a" * 2**i for i in range(1, 10))], []),  # the longest has 512 bytes
        ([b"ab", *SINGLES], []),  # a merge makes the token of rank 0
        ([*SINGLES, b"ab", b"bc", b"abc"], [["a", "bc"]]),  # two merges make the same token
    ],
)
def test_merges_that_may_be(tokens: list[bytes], more: list[list[str]], tmp_path: Path) -> None:
    data = tokenizer_json(Tokenizer(tokens, {}))
    data["model"]["merges"] += more
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    assert read_tokenizer_json(path).tokens == tuple(tokens)


def test_long_runs_of_spaces() -> None:
    """Their pieces, and tokens as of the whole text."""
    long, short = " " * (LONG + 5), " " * (LONG - 1)
    for text, pieces in [
        (f"a{long}b", [(1, LONG + 5)]),
        (f"a{long}", [(1, LONG + 6)]),
        (long, [(0, LONG + 5)]),
        (f"a{short}b", []),
        (f"a{' ' * LONG}b", [(1, LONG)]),
        (f"a{long}\nb", []),
        (f"a{long}b{long}c", [(1, LONG + 5), (LONG + 7, 2 * LONG + 11)]),
    ]:
        assert list(long_spaces(text)) == pieces
        assert o200k_harmony().encode(text) == o200k_harmony().encoding.encode_ordinary(text)


def test_long_runs_are_encoded_apart() -> None:
    seen = []

    class Seen(Tokenizer):
        def _encode(self, text: str) -> list[int]:
            seen.append(text)
            return super()._encode(text)

    Seen(SMALL.tokens, SMALL.special).encode(f"a{' ' * LONG}b")
    assert seen == ["a", " b"]
    assert Seen(SMALL.tokens, SMALL.special).name == "tokenizer"
    assert Seen(SMALL.tokens, SMALL.special, name="seen").encoding.name == "seen"


def test_small_vocabularies_have_what_is_asked_for() -> None:
    smallest = small_harmony(256, last=200_000)
    assert smallest.special == {
        "<|startoftext|>": 256,
        "<|endoftext|>": 257,
        "<|reserved_200000|>": 258,
    }
    assert (smallest.vocab_size, smallest.name, smallest.pattern) == (
        259,
        "o200k_harmony[:256]",
        O200K_PATTERN,
    )
    assert small_harmony(256).vocab_size == 256 + 200_018 - 199_998 + 1
    assert small_harmony(199_998, last=199_998).vocab_size == 199_999
    for ranks_asked in (255, 199_999):
        with pytest.raises(TokenError, match=f"ranks = {ranks_asked}: expected 256 to 199998"):
            small_harmony(ranks_asked)
    assert repr(smallest) == "<Tokenizer o200k_harmony[:256]: 256 ranks, vocabulary 259>"


def test_ids_without_a_token() -> None:
    gap = Tokenizer(SMALL.tokens[:256], {"<|a|>": 258, "<|b|>": 258}, name="gap")
    assert gap.vocab_size == 259
    assert (gap.decode([258]), gap.is_special(255), gap.is_special(256)) == ("<|a|>", False, True)
    for token in (256, 257, 259, -1):
        with pytest.raises(
            TokenError, match=f"token id {token}: no such token, .* 0 to 258 that gap"
        ):
            gap.token_bytes(token)
    assert Tokenizer(SMALL.tokens[:256], {}).vocab_size == 256
    with pytest.raises(
        TokenError, match=r"^x: special token <\|a\|> has id 255, expected at least 256"
    ):
        Tokenizer(SMALL.tokens[:256], {"<|a|>": 255}, name="x")


def test_no_tokenizer_and_no_json(tmp_path: Path) -> None:
    config = SimpleNamespace(vocab_size=1521)
    with pytest.raises(TokenError, match=r"tokenizer\.json: cannot read .*needs its own"):
        load_tokenizer(tmp_path, config)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"{", "not JSON"),
        (b'{"model": "\xff"}', "not JSON: byte 11 is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"model": ' + b"9" * 5000 + b"}", "a number has too many digits"),
        (b"[]", r"the whole file is \[\], expected an object"),
    ],
)
def test_no_tokenizer_json_at_all(content: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenError, match=rf"tokenizer\.json: .*{match}"):
        read_tokenizer_json(tmp_path / "tokenizer.json")


def test_a_tokenizer_larger_than_the_model(folder: Path) -> None:
    with pytest.raises(TokenError, match=r"largest token id is 1520, expected less than .* 1500"):
        load_tokenizer(folder, SimpleNamespace(vocab_size=1500))


@pytest.mark.parametrize("token", [b"abc", b""])
def test_tokens_that_no_merge_makes(token: bytes) -> None:
    odd = Tokenizer([*SINGLES, token], harmony_specials(257, 200_018), name="odd")
    with pytest.raises(TokenError, match=re.escape(f"odd: rank 256, {token!r}, has no merge")):
        tokenizer_json(odd)
