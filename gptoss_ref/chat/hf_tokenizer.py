"""Reading and writing a Hugging Face tokenizer.json that holds a byte-level BPE.

The file and a list of ranks say the same thing in two ways:

- Hugging Face spells bytes as printable characters (the GPT-2 table), lists the vocabulary, and
  lists *merges*: pairs of tokens to join, most urgent first.
- tiktoken joins any two neighbours whose bytes together are a token, lowest rank first.

They agree when ids are ranks and every token comes from exactly the pair that the ranks below it
leave over when they are applied to its bytes. `read_tokenizer_json` checks that, so a file that
would tokenise differently is refused and not misread.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import TokenError
from .tokenizer import Tokenizer


def _byte_table() -> dict[str, int]:
    """Character -> byte. Printable Latin-1 stands for itself; the rest are moved to U+0100 and on.

    Source: GPT-2's encoder.py, kept by every byte-level BPE since.
    """
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + i): b for i, b in enumerate(moved)}


_BYTE_OF = _byte_table()
_CHARACTER_OF = {byte: character for character, byte in _BYTE_OF.items()}


def _spell(token: bytes) -> str:
    return "".join(_CHARACTER_OF[byte] for byte in token)


def _last_pair(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens left when all merges ranked below `token` are applied to its bytes.

    None when they do not leave exactly two: then no merge makes the token.
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
    """The tokenizer.json, as a dict, that Hugging Face's tokenizers library reads alike.

    An id with two names keeps the first. Raises TokenError when some rank cannot be reached by
    merging two lower ones.
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

    Raises TokenError, naming the file and the field, when the file is missing or broken, is not a
    plain byte-level BPE with one split pattern, or has merges that the ranks do not imply.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TokenError(
            f"{path}: cannot read ({error.strerror}); a checkpoint whose vocab_size is not 201088 "
            "needs its own tokenizer.json"
        ) from None
    except ValueError as error:
        raise TokenError(f"{path}: not JSON: {error}") from None
    try:
        return _build(path, data)
    except (KeyError, TypeError, AttributeError) as error:
        raise TokenError(f"{path}: not laid out as a tokenizer.json: {error!r}") from None


def _build(path: Path, data: Mapping[str, Any]) -> Tokenizer:
    model = data["model"]
    if model["type"] != "BPE":
        raise TokenError(f"{path}: model.type is {model['type']}, expected BPE")
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            raise TokenError(f"{path}: model.{field} is {model[field]!r}, expected none")
    if data.get("normalizer") is not None:
        raise TokenError(f"{path}: normalizer is {data['normalizer']!r}, expected null")
    tokens = _ranks(path, model["vocab"])
    _check_merges(path, tokens, model["merges"])
    special = {}
    for added in data["added_tokens"]:
        if not added["special"]:
            raise TokenError(
                f"{path}: added token {added['content']!r} is not special, expected only special "
                "ones: text would turn into it"
            )
        special[added["content"]] = int(added["id"])
    pattern = _split_pattern(path, data["pre_tokenizer"])
    return Tokenizer(tokens, special, pattern=pattern, name=str(path))


def _ranks(path: Path, vocab: Mapping[str, int]) -> list[bytes]:
    """Token bytes in rank order; the ids must be 0, 1, 2, … and every byte must be a token."""
    tokens: list[bytes] = []
    for rank, (text, number) in enumerate(sorted(vocab.items(), key=lambda item: item[1])):
        if number != rank:
            raise TokenError(f"{path}: model.vocab: {text!r} has id {number}, expected {rank}")
        try:
            tokens.append(bytes(_BYTE_OF[character] for character in text))
        except KeyError as error:
            raise TokenError(
                f"{path}: model.vocab: {text!r}: {error.args[0]!r} is no byte-level character"
            ) from None
    missing = sorted(set(range(256)) - {token[0] for token in tokens if len(token) == 1})
    if missing:
        raise TokenError(f"{path}: model.vocab: no token for the byte {missing[0]:#04x}")
    return tokens


def _check_merges(path: Path, tokens: Sequence[bytes], merges: Sequence[Any]) -> None:
    """The merges must be the ones that the rank order implies, in that order."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    expected = {t: _last_pair(t, ranks) for t in tokens if len(t) > 1}
    found: dict[bytes, list[tuple[bytes, bytes]]] = {}
    previous = -1
    for number, merge in enumerate(merges):
        texts = merge.split(" ") if isinstance(merge, str) else merge
        left, right = (bytes(_BYTE_OF[character] for character in text) for text in texts)
        rank = ranks.get(left + right)
        if rank is None or rank < previous:
            raise TokenError(
                f"{path}: model.merges[{number}] = {merge!r}: expected pairs that make tokens, "
                "in the order of their ids"
            )
        previous = rank
        found.setdefault(left + right, []).append((left, right))
    for token, pair in expected.items():
        if pair is None or pair not in found.get(token, []):
            raise TokenError(
                f"{path}: model.merges: token {ranks[token]}, {_spell(token)!r}, is not "
                "made by the pair that the ranks below it imply"
            )


def _split_pattern(path: Path, pre_tokenizer: Mapping[str, Any]) -> str:
    """The regular expression of a Split followed by a ByteLevel without its own."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kinds = [step["type"] for step in steps]
    if kinds != ["Split", "ByteLevel"]:
        raise TokenError(f"{path}: pre_tokenizer is {kinds}, expected ['Split', 'ByteLevel']")
    split, byte_level = steps
    if split["behavior"] != "Isolated" or split["invert"] or "Regex" not in split["pattern"]:
        raise TokenError(f"{path}: pre_tokenizer.Split: expected an isolating Regex, not inverted")
    if byte_level["add_prefix_space"] or byte_level["use_regex"]:
        raise TokenError(
            f"{path}: pre_tokenizer.ByteLevel: expected add_prefix_space and use_regex to be false"
        )
    return str(split["pattern"]["Regex"])
