"""Pack and unpack the o200k_base ranks that the package ships.

The released file, o200k_base.tiktoken, has one line per token: its bytes in base64, and its rank.
The ranks count up from 0, so the order of the lines is enough, and base64 compresses badly.
The packed form is the bytes of the tokens in rank order, xz-compressed: first the 256 tokens of one
byte, with nothing between them; then all others, separated by the byte 0xff, which no text in UTF-8
contains and which occurs in no other token. It has about 742,000 bytes instead of 3,613,922.

To make the packed file again from the released one:

    python -m gptoss_ref.chat.pack_ranks o200k_base.tiktoken

To get the released file back, for other tools (openai-harmony reads it from the folder in
TIKTOKEN_ENCODINGS_BASE):

    python -m gptoss_ref.chat.pack_ranks --unpack o200k_base.tiktoken
"""

import argparse
import base64
import binascii
import hashlib
import lzma
import sys
from pathlib import Path

from gptoss_ref.errors import GptOssError, TokenError

RANKS_FILE = Path(__file__).resolve().parent.parent / "data" / "o200k_base.ranks.xz"
RELEASED_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
PACKED_SHA256 = "9b7be435804867e58c8ca548e90ecb2d5cfecbcec584618c814b024f85c79eb1"
O200K_TOKENS = 199_998

_SEPARATOR = b"\xff"
_BYTES = 256  # number of one-byte tokens, which come first
_FILTERS = [
    {
        "id": lzma.FILTER_LZMA2,
        "preset": 9 | lzma.PRESET_EXTREME,
        "dict_size": 1 << 22,
        "nice_len": 273,
        "lc": 4,
        "lp": 0,
        "pb": 0,
    }
]


def parse_released(text: bytes) -> list[bytes]:
    """Token bytes in rank order, from the text of a .tiktoken file.

    Raises TokenError, with the line number, unless every line is base64, a space and the next rank.
    """
    tokens = []
    for rank, line in enumerate(text.splitlines()):
        encoded, _, number = line.partition(b" ")
        try:
            tokens.append(base64.b64decode(encoded, validate=True))
        except binascii.Error as error:
            raise TokenError(f"rank file, line {rank + 1}: not base64 ({error})") from None
        if number != b"%d" % rank:
            raise TokenError(f"rank file, line {rank + 1}: expected rank {rank}, found {number!r}")
    return tokens


def released_text(tokens: list[bytes]) -> bytes:
    """The text of the .tiktoken file that lists these tokens."""
    return b"".join(b"%s %d\n" % (base64.b64encode(t), rank) for rank, t in enumerate(tokens))


def pack(tokens: list[bytes]) -> bytes:
    """The packed form; TokenError if the tokens do not have the properties that it relies on."""
    singles, rest = tokens[:_BYTES], tokens[_BYTES:]
    if any(len(token) != 1 for token in singles) or any(
        not token or _SEPARATOR in token for token in rest
    ):
        raise TokenError("rank file: expected 256 one-byte tokens first, then tokens without 0xff")
    plain = b"".join(singles) + _SEPARATOR.join(rest)
    return lzma.compress(plain, check=lzma.CHECK_CRC32, filters=_FILTERS)


def unpack(packed: bytes) -> list[bytes]:
    """Token bytes in rank order, from the packed form. Raises lzma.LZMAError on broken data."""
    plain = lzma.decompress(packed)
    singles = [plain[i : i + 1] for i in range(_BYTES)]
    return singles + plain[_BYTES:].split(_SEPARATOR)


def shipped_tokens(path: Path = RANKS_FILE) -> list[bytes]:
    """The 199,998 tokens of o200k_base in rank order, from the file in the package.

    Raises TokenError if the file is missing or its SHA-256 is not the recorded one.
    """
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise TokenError(f"{path}: cannot read the tokenizer's ranks: {error.strerror}") from None
    digest = hashlib.sha256(packed).hexdigest()
    if digest != PACKED_SHA256:
        raise TokenError(
            f"{path}: damaged: SHA-256 is {digest}, expected {PACKED_SHA256}; reinstall the package"
        )
    return unpack(packed)


def main(argv: list[str] | None = None) -> int:
    """The command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m gptoss_ref.chat.pack_ranks",
        description="Pack o200k_base.tiktoken into the package's form, or write it out again.",
    )
    parser.add_argument("file", type=Path, help="o200k_base.tiktoken, to read or to write")
    parser.add_argument("--unpack", action="store_true", help="write FILE from the packed ranks")
    parser.add_argument("--output", type=Path, default=RANKS_FILE, help="the packed file")
    args = parser.parse_args(argv)
    try:
        if args.unpack:
            args.file.write_bytes(released_text(shipped_tokens(args.output)))
            print(args.file)
            return 0
        text = args.file.read_bytes()
        digest = hashlib.sha256(text).hexdigest()
        if digest != RELEASED_SHA256:
            raise TokenError(f"{args.file}: SHA-256 is {digest}, expected {RELEASED_SHA256}")
        packed = pack(parse_released(text))
        args.output.write_bytes(packed)
        print(f"{args.output}: {len(packed)} bytes, SHA-256 {hashlib.sha256(packed).hexdigest()}")
    except (GptOssError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
