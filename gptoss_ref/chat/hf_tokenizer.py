"""Read and write a Hugging Face tokenizer.json with a byte-level BPE.

The file and a list of ranks describe the same tokenizer in two ways:

- Hugging Face spells bytes as printable characters (the GPT-2 table), lists the vocabulary, and
  lists *merges*: pairs of tokens to join, in order of priority.
- tiktoken joins any two neighbours whose bytes together are a token, lowest rank first.

They give the same tokens if ids are ranks, and if applying all lower ranks to the bytes of a token
leaves exactly the pair that its merge joins. `read_tokenizer_json` checks that, and refuses a file
that would tokenise differently.
"""

import json
import reprlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from gptoss_ref._files import outside, read_bounded
from gptoss_ref.chat.split import SAFE_PATTERNS
from gptoss_ref.chat.tokenizer import HARMONY_TOKENS, LAST_SPECIAL, Tokenizer, o200k_harmony
from gptoss_ref.errors import TokenError


def _byte_table() -> dict[str, int]:
    """Character -> byte. Printable Latin-1 is itself; all other bytes are U+0100, U+0101, …

    Source: GPT-2's encoder.py, kept by every byte-level BPE since.
    """
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + i): b for i, b in enumerate(moved)}


_BYTE_OF = _byte_table()
_CHARACTER_OF = {byte: character for character, byte in _BYTE_OF.items()}

# Names of JSON types in errors; values from the file are shown in shortened form.
_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    bool: "true or false",
}
_short = reprlib.repr

# Largest number of unused ids between the ranks and the special tokens: each takes memory.
_LARGEST_GAP = 2**20

# The longest token, in bytes: checking its merge takes time quadratic in it. o200k_base has 128.
_LONGEST_TOKEN = 512


def _spell(token: bytes) -> str:
    return "".join(_CHARACTER_OF[byte] for byte in token)


def _last_pair(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that remain when all merges ranked below `token` are applied to its bytes.

    None if the result is not exactly two tokens: then no merge makes the token.
    """
    limit = ranks[token]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(a + b, limit) for a, b in pairwise(parts)]
        best = min(joined)
        if best >= limit:
            return None
        at = joined.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer.json, as a dict, that gives the same tokens in Hugging Face's tokenizers.

    An id with two names keeps the first. Raises TokenError if a token cannot be made by merging two
    tokens of lower rank.
    """
    ranks = {token: rank for rank, token in enumerate(tokenizer.tokens)}
    merges = []
    for token in tokenizer.tokens:
        if len(token) == 1:
            continue
        pair = _last_pair(token, ranks)
        if pair is None:
            raise TokenError(f"{tokenizer.name}: rank {ranks[token]}, {token!r}, has no merge")
        merges.append([_spell(part) for part in pair])
    names: dict[int, str] = {}
    for name, number in tokenizer.special.items():
        names.setdefault(number, name)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": names[number], **flags, "special": True}
            for number in sorted(names)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": tokenizer.pattern},
                    "behavior": "Isolated",
                    "invert": False,
                },
                byte_level,
            ],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {_spell(token): rank for rank, token in enumerate(tokenizer.tokens)},
            "merges": merges,
        },
    }


def read_tokenizer_json(path: str | Path) -> Tokenizer:
    """The tokenizer that a tokenizer.json describes.

    Raises TokenError, with the file and the field, if the file is missing or broken, is not a plain
    byte-level BPE, splits text by a pattern that is not in split.SAFE_PATTERNS, or has merges that
    do not follow from the ranks.
    """
    path = Path(path)
    data = _typed(path, "the whole file", _load(path), dict)
    model = _field(path, data, "model", dict)
    kind = _field(path, model, "model.type", str)
    if kind != "BPE":
        raise TokenError(f"{path}: model.type is {kind}, expected BPE")
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            raise TokenError(f"{path}: model.{field} is {_short(model[field])}, expected none")
    if data.get("normalizer") is not None:
        raise TokenError(f"{path}: normalizer is {_short(data['normalizer'])}, expected null")
    tokens = _ranks(path, _field(path, model, "model.vocab", dict))
    _check_merges(path, tokens, _field(path, model, "model.merges", list))
    special = _specials(path, _field(path, data, "added_tokens", list), len(tokens))
    pattern = _split_pattern(path, _field(path, data, "pre_tokenizer", dict))
    tokenizer = Tokenizer(tokens, special, pattern=pattern, name=str(path))
    if pattern not in SAFE_PATTERNS:
        raise TokenError(
            f"{path}: pre_tokenizer.Split.pattern.Regex is {_short(pattern)}, expected that of "
            "o200k_base or cl100k_base with numbers of 1, 2 or 3 digits "
            "(gptoss_ref.chat.split.SAFE_PATTERNS): other patterns may be very slow on some texts"
        )
    return tokenizer


def _load(path: Path) -> Any:
    try:
        return json.loads(read_bounded(path).decode())
    except OSError as error:
        raise TokenError(
            f"{path}: cannot read ({error.strerror}); a checkpoint whose vocab_size is not 201088 "
            "needs its own tokenizer.json"
        ) from None
    except UnicodeDecodeError as error:
        raise TokenError(f"{path}: not JSON: byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise TokenError(f"{path}: not JSON: {error}") from None
    except RecursionError:
        raise TokenError(f"{path}: not a tokenizer.json: nested too deeply") from None
    except ValueError:  # an integer of more than 4300 digits
        raise TokenError(f"{path}: not a tokenizer.json: a number has too many digits") from None


def _typed(path: Path, field: str, value: Any, kind: type) -> Any:
    """The value, if it is of this JSON type, else TokenError; true and false are not numbers."""
    if type(value) is not kind:
        raise TokenError(f"{path}: {field} is {_short(value)}, expected {_KINDS[kind]}")
    return value


def _field(path: Path, owner: Mapping[str, Any], field: str, kind: type) -> Any:
    """The value in `owner` under the last part of the dotted name `field`, of this type."""
    key = field.rpartition(".")[2]
    if key not in owner:
        raise TokenError(f"{path}: {field} is missing, expected {_KINDS[kind]}")
    return _typed(path, field, owner[key], kind)


def _specials(path: Path, added_tokens: Sequence[Any], ranks: int) -> dict[str, int]:
    """Name -> id of the added tokens; TokenError if one of them is not special."""
    limit = ranks + len(added_tokens) + _LARGEST_GAP
    special = {}
    for number, added in enumerate(added_tokens):
        field = f"added_tokens[{number}]"
        _typed(path, field, added, dict)
        content = _field(path, added, f"{field}.content", str)
        if any("\ud800" <= character <= "\udfff" for character in content):
            raise TokenError(f"{path}: {field}.content is {content!r}, expected whole characters")
        if not _field(path, added, f"{field}.special", bool):
            raise TokenError(
                f"{path}: added token {content!r} is not special, expected only special "
                "ones: plain text could become this token"
            )
        if not content or content in special:
            raise TokenError(f"{path}: {field}.content is {content!r}, expected a unique name")
        token = _field(path, added, f"{field}.id", int)
        if token >= limit:
            raise TokenError(f"{path}: {field}.id is {_short(token)}, expected less than {limit}")
        special[content] = token
    return special


def _bytes(path: Path, field: str, text: str) -> bytes:
    """The bytes that a text spells in the characters of the GPT-2 table; at least one."""
    if not text:
        raise TokenError(f"{path}: {field}: a token is empty, expected at least one character")
    if len(text) > _LONGEST_TOKEN:
        raise TokenError(
            f"{path}: {field}: a token has {len(text)} bytes, expected at most {_LONGEST_TOKEN}"
        )
    try:
        return bytes(_BYTE_OF[character] for character in text)
    except KeyError as error:
        raise TokenError(
            f"{path}: {field}: {text!r}: {error.args[0]!r} is not a byte-level character"
        ) from None


def _ranks(path: Path, vocab: Mapping[str, Any]) -> list[bytes]:
    """Token bytes in rank order; TokenError unless ids are 0, 1, 2, … and all bytes are tokens."""
    for text, number in vocab.items():
        _typed(path, f"model.vocab: the id of {text!r}", number, int)
    tokens: list[bytes] = []
    for rank, (text, number) in enumerate(sorted(vocab.items(), key=lambda item: item[1])):
        if number != rank:
            raise TokenError(
                f"{path}: model.vocab: {text!r} has id {_short(number)}, expected {rank}"
            )
        tokens.append(_bytes(path, "model.vocab", text))
    missing = sorted(set(range(256)) - {token[0] for token in tokens if len(token) == 1})
    if missing:
        raise TokenError(f"{path}: model.vocab: no token for the byte {missing[0]:#04x}")
    return tokens


def _check_merges(path: Path, tokens: Sequence[bytes], merges: Sequence[Any]) -> None:
    """TokenError unless the merges are those that follow from the ranks, in order of rank."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    expected = {t: _last_pair(t, ranks) for t in tokens if len(t) > 1}
    found: dict[bytes, list[tuple[bytes, bytes]]] = {}
    previous = -1
    for number, merge in enumerate(merges):
        field = f"model.merges[{number}]"
        texts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(texts, list) or [type(text) for text in texts] != [str, str]:
            raise TokenError(f"{path}: {field} is {_short(merge)}, expected a pair of tokens")
        left, right = (_bytes(path, field, text) for text in texts)
        rank = ranks.get(left + right)
        if rank is None or rank < previous:
            raise TokenError(
                f"{path}: {field} = {_short(merge)}: expected pairs that make tokens, "
                "in order of the tokens' ids"
            )
        previous = rank
        found.setdefault(left + right, []).append((left, right))
    for token, pair in expected.items():
        if pair is None or pair not in found.get(token, []):
            raise TokenError(
                f"{path}: model.merges: the pair of token {ranks[token]}, {_spell(token)!r}, does "
                "not follow from the lower ranks"
            )


def _split_pattern(path: Path, pre_tokenizer: Mapping[str, Any]) -> str:
    """The regular expression of a Split, followed by a ByteLevel without a regular expression."""
    steps = [pre_tokenizer]
    if "pretokenizers" in pre_tokenizer:
        steps = _field(path, pre_tokenizer, "pre_tokenizer.pretokenizers", list)
    kinds = []
    for number, step in enumerate(steps):
        field = f"pre_tokenizer.pretokenizers[{number}]"
        kinds.append(_field(path, _typed(path, field, step, dict), f"{field}.type", str))
    if kinds != ["Split", "ByteLevel"]:
        raise TokenError(
            f"{path}: pre_tokenizer is {_short(kinds)}, expected ['Split', 'ByteLevel']"
        )
    split, byte_level = steps
    pattern = _field(path, split, "pre_tokenizer.Split.pattern", dict)
    behavior = _field(path, split, "pre_tokenizer.Split.behavior", str)
    inverted = _field(path, split, "pre_tokenizer.Split.invert", bool)
    if behavior != "Isolated" or inverted or "Regex" not in pattern:
        raise TokenError(f"{path}: pre_tokenizer.Split: expected an isolating Regex, not inverted")
    options = ("add_prefix_space", "use_regex")
    if any(_field(path, byte_level, f"pre_tokenizer.ByteLevel.{o}", bool) for o in options):
        raise TokenError(
            f"{path}: pre_tokenizer.ByteLevel: expected add_prefix_space and use_regex to be false"
        )
    return str(_field(path, pattern, "pre_tokenizer.Split.pattern.Regex", str))


def load_tokenizer(folder: str | Path, config: Any) -> Tokenizer:
    """The tokenizer of a checkpoint.

    If `config.vocab_size` is 201088, it is `o200k_harmony`, and no file of the folder is read.
    Otherwise it is built from the folder's tokenizer.json (Hugging Face, byte-level BPE).

    Raises TokenError if that file is missing, is of another kind, is a link out of the folder, or
    does not fit the vocabulary.
    """
    if config.vocab_size == LAST_SPECIAL + 1:
        return o200k_harmony()
    path = Path(folder) / "tokenizer.json"
    if reason := outside(path, path.parent):
        raise TokenError(f"{path}: {reason}")
    tokenizer = read_tokenizer_json(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise TokenError(
            f"{path}: largest token id is {tokenizer.vocab_size - 1}, "
            f"expected less than the configuration's vocab_size, {config.vocab_size}"
        )
    for name in HARMONY_TOKENS:
        tokenizer.special_id(name)
    return tokenizer
