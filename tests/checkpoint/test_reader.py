"""The safetensors reader against safetensors' own writer and reader, and against damaged files."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gptoss_ref._files import release
from gptoss_ref.checkpoint.reader import DTYPE_BITS, SafetensorsFile, _ask_for_large_pages
from gptoss_ref.errors import CheckpointError

TORCH = {"U8": torch.uint8, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
BYTES = {"U8": 1, "BF16": 2, "F32": 4, "F64": 8}
shapes = st.lists(st.integers(0, 5), max_size=4)
# Each example overwrites the file of the one before, so one tmp_path serves them all.
in_tmp = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
often = settings(in_tmp, max_examples=16 * settings.default.max_examples)


def build(header: Any, data: bytes, length: int | None = None) -> bytes:
    """A safetensors file from its parts; `header` may be raw bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def random_tensor(rng: np.random.Generator, dtype: str, shape: list[int]) -> torch.Tensor:
    """Any bit patterns, NaNs included."""
    count = math.prod(shape)
    if count == 0:  # torch reinterprets no empty tensors
        return torch.zeros(shape, dtype=TORCH[dtype])
    bits = torch.from_numpy(rng.integers(0, 256, count * BYTES[dtype], dtype=np.uint8))
    return bits.view(TORCH[dtype]).reshape(shape)


def raw(tensor: torch.Tensor) -> bytes:
    if tensor.numel() == 0:
        return b""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def refuses(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


@in_tmp
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda n: n != "__metadata__"),
        st.tuples(st.sampled_from(sorted(TORCH)), shapes),
        max_size=6,
    ),
    st.integers(0, 2**32 - 1),
)
def test_reads_what_safetensors_writes(tmp_path: Path, layout: dict, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tensors = {name: random_tensor(rng, *what) for name, what in layout.items()}
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    file = SafetensorsFile(path)
    assert (file.path, file.metadata) == (path, {"format": "pt"})
    assert set(file.tensors) == set(tensors)
    for name, tensor in tensors.items():
        dtype, shape = layout[name]
        ours = file.array(name)
        assert file.tensors[name].dtype == dtype
        assert list(ours.shape) == shape
        assert not ours.flags.writeable
        assert ours.tobytes() == raw(tensor)


def test_knows_every_dtype_of_the_format() -> None:
    """The dtypes are those that the safetensors package itself lists when it refuses one."""
    with pytest.raises(safetensors.SafetensorError) as caught:
        safetensors.deserialize(build({"x": entry("Q9", [], 0, 0)}, b""))
    listed = str(caught.value).partition("expected one of")[2]
    named = {word.strip("` .") for word in listed.split("at line")[0].split(",")}
    assert named <= set(DTYPE_BITS)
    assert len(named) > 15


def test_views_are_zero_copy_and_may_be_unaligned(tmp_path: Path) -> None:
    values = np.arange(6, dtype="<u2") * 1001
    header = {"a": entry("U8", [3], 0, 3), "b": entry("BF16", [2, 3], 3, 15)}
    path = tmp_path / "x.safetensors"
    path.write_bytes(build(header, b"xyz" + values.tobytes()))
    file = SafetensorsFile(path)
    assert file.metadata == {}
    assert file.array("a").tobytes() == b"xyz"
    first, second = file.array("b"), file.array("b")
    assert np.array_equal(first, values.reshape(2, 3))
    assert np.shares_memory(first, second)
    file.release()
    assert np.array_equal(first, values.reshape(2, 3))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads Linux's list of mappings")
def test_release_drops_the_pages_behind_views(tmp_path: Path) -> None:
    """Of the whole file, whatever views of views are given; arrays in memory are ignored."""
    path, size = tmp_path / "large.safetensors", 8 << 20
    path.write_bytes(build({"a": entry("U8", [2, size // 2], 0, size)}, bytes(size)))
    view = SafetensorsFile(path).array("a")[1:, 16:].reshape(-1)

    def resident() -> int:
        """KiB of the file in this process."""
        lines = iter(Path("/proc/self/smaps").read_text().splitlines())
        entries = (line for line in lines if line.endswith(str(path)))
        return sum(int(next(x for x in lines if x.startswith("Rss:")).split()[1]) for _ in entries)

    assert not view.any()
    assert resident() > 4000
    release([np.ones(3), view])
    assert resident() == 0
    assert not view.any()


@pytest.mark.parametrize("mode", ["c", "r+", "r"])
def test_release_keeps_what_was_written(tmp_path: Path, mode: Any) -> None:
    """Pages of a copy-on-write mapping, which are in no file."""
    np.save(tmp_path / "a.npy", np.arange(5000.0))
    view = np.load(tmp_path / "a.npy", mmap_mode=mode)
    if mode != "r":
        view[7] = -1
    release([view[2:], view])
    assert view[7] == (7 if mode == "r" else -1)
    assert view[8] == 8


def test_other_dtypes_are_not_misread(tmp_path: Path) -> None:
    """U16 is not bfloat16: only the dtypes of a gpt-oss checkpoint become arrays."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(build({"t": entry("U16", [2], 0, 4)}, bytes(4)))
    with pytest.raises(CheckpointError, match="tensor 't' is U16"):
        SafetensorsFile(path).array("t")


def test_shapes_as_large_as_may_be(tmp_path: Path) -> None:
    """Sizes below 2^60 and products of them, zeros taken for ones; offsets past 120."""
    path = tmp_path / "x.safetensors"
    shapes = [[2**60 - 1, 0], [2**30, 2**30 - 1, 0], [2**59, 1, 0], [121], [11, 11]]
    header, at = {}, 0
    for n, shape in enumerate(shapes):
        header[str(n)] = entry("U8", shape, at, at := at + math.prod(shape))
    path.write_bytes(build(header, bytes(at)))
    assert [t.shape for t in SafetensorsFile(path).tensors.values()] == [*map(tuple, shapes)]


def test_pages_are_asked_for_and_may_be_refused() -> None:
    asked = []

    class Mapped:
        def madvise(self, option: int) -> None:
            asked.append(option)
            raise OSError(22, "Invalid argument")

    _ask_for_large_pages(Mapped())  # type: ignore[arg-type]
    assert asked == ([mmap.MADV_HUGEPAGE] if hasattr(mmap, "MADV_HUGEPAGE") else [])


GOOD = entry("U8", [2], 0, 2)
DAMAGED: list[tuple[str, bytes, str]] = [
    ("empty", b"", "truncated: 0 bytes"),
    ("short", b"\x01\0\0", "truncated: 3 bytes"),
    ("lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    ("huge-header", build({}, b"", 2**63), "not a safetensors file"),
    ("header-limit", build({}, b"", 10**8), "truncated: the header has 100000000 bytes, but the"),
    ("header-over", build({}, b"", 10**8 + 1), "it claims a header of 100000001 bytes"),
    ("header-one", build({"a": GOOD}, b"", len(json.dumps({"a": GOOD})) + 1), "truncated: the he"),
    ("shape-60", build({"a": entry("U8", [2**60, 0], 0, 0)}, b""), "'a': shape must be a list"),
    ("shape-2^60", build({"a": entry("U8", [2**30, 2**30, 0], 0, 0)}, b""), "'a': shape must be a"),
    ("brief-60", build({"a": entry("U8", "x" * 58, 0, 0)}, b""), "sizes, not '" + "x" * 58 + "'$"),
    (
        "brief-61",
        build({"a": entry("U8", "y" + "x" * 58, 0, 0)}, b""),
        "sizes, not 'y" + "x" * 55 + r"\.\.\.$",
    ),
    ("header-cut", build({"a": GOOD}, b"", 900), "truncated: the header has 900 bytes"),
    ("not-json", build(b"{nope", b""), "header is not JSON"),
    ("not-utf8", build(b'{"\xff": 1}', b""), "header is not JSON"),
    ("deep", build(b"[" * 200_000, b""), "header is not JSON"),
    ("list", build([1], b""), "not a JSON object"),
    ("twice", build(b'{"a": 1, "a": 2}', b""), "names 'a' twice"),
    ("metadata", build({"__metadata__": {"a": 1}}, b""), "__metadata__ must map"),
    ("not-entry", build({"a": 1}, b""), "'a': its header entry must hold"),
    ("lacks", build({"a": {"dtype": "U8", "shape": [2]}}, b""), "'a': its header entry must hold"),
    ("extra", build({"a": {**GOOD, "stride": 1}}, b"xx"), "'a': its header entry must hold"),
    ("dtype", build({"a": entry("INT8", [2], 0, 2)}, b"xx"), "'a': unknown dtype 'INT8'"),
    ("dtype-type", build({"a": entry([], [2], 0, 2)}, b"xx"), "'a': unknown dtype"),
    ("shape-negative", build({"a": entry("U8", [-2], 0, 2)}, b"xx"), "'a': shape must be a list"),
    ("shape-float", build({"a": entry("U8", [2.0], 0, 2)}, b"xx"), "'a': shape must be a list"),
    ("shape-bool", build({"a": entry("U8", [True], 0, 1)}, b"x"), "'a': shape must be a list"),
    ("shape-huge", build({"a": entry("U8", [2**59, 0, 2**59], 0, 0)}, b""), "'a': shape must be"),
    ("offsets", build({"a": entry("U8", [2], 2, 0)}, b"xx"), r"'a': data_offsets must be \[begin"),
    ("offsets-1", build({"a": {**GOOD, "data_offsets": [0]}}, b"xx"), "'a': data_offsets must be"),
    ("size", build({"a": entry("BF16", [2], 0, 2)}, b"xx"), r"BF16 of shape \(2,\) takes 4 bytes"),
    (
        "size-more",
        build({"a": entry("U8", [2], 0, 3)}, b"xxx"),
        r"U8 of shape \(2,\) takes 2 bytes",
    ),
    ("half-byte", build({"a": entry("F4", [3], 0, 1)}, b"x"), "takes 1.5 bytes, not 1"),
    ("beyond", build({"a": GOOD}, b"x"), r"truncated: the tensors need \d+ bytes"),
    ("tail", build({"a": GOOD}, b"xxx"), "1 bytes after tensor 'a' belong to no tensor"),
    ("gap", build({"a": GOOD, "b": entry("U8", [1], 3, 4)}, b"xxxx"), "1 bytes between tensor 'a'"),
    ("gap-first", build({"a": entry("U8", [2], 1, 3)}, b"xxx"), "1 bytes between the header and"),
    ("overlap", build({"a": GOOD, "b": entry("U8", [2], 1, 3)}, b"xxx"), "'b' overlaps tensor 'a'"),
    ("same", build({"a": GOOD, "b": GOOD}, b"xx"), "'b' overlaps tensor 'a'"),
]


@pytest.mark.parametrize(
    ("content", "message"), [d[1:] for d in DAMAGED], ids=[d[0] for d in DAMAGED]
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    refuses(tmp_path / "x.safetensors", content, message)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        SafetensorsFile(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        SafetensorsFile(tmp_path)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(5.0), "b": torch.arange(3, dtype=torch.uint8)}, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            SafetensorsFile(path)


def accepts(read: Callable[[], Any]) -> bool:
    try:
        read()
    except (CheckpointError, safetensors.SafetensorError, UnicodeDecodeError):
        return False
    return True


@often
@given(st.data())
def test_damage_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes changed, dropped or put in: refused, or read as safetensors reads it."""
    path = tmp_path / "x.safetensors"
    tensors = {
        "one": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "two": torch.arange(4, dtype=torch.uint8),
        "three": torch.tensor([1.5, -2.0]),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["flip", "digit", "drop", "insert", "cut"]))
        if kind == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "digit":
            digits = [i for i, byte in enumerate(content) if chr(byte).isdecimal()]
            content[data.draw(st.sampled_from(digits))] = ord(
                data.draw(st.sampled_from("0123456789"))
            )
        elif kind == "drop":
            del content[at]
        elif kind == "insert":
            content.insert(at, data.draw(st.integers(0, 255)))
        else:
            del content[at:]
            break
    path.write_bytes(content)
    try:
        file = SafetensorsFile(path)
        ours = {name: file.array(name) for name in file.tensors}
    except CheckpointError:
        return
    theirs = load_file(path)
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        assert array.shape == tuple(theirs[name].shape)
        assert array.tobytes() == raw(theirs[name])


@in_tmp
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert not accepts(lambda: SafetensorsFile(path)) or accepts(
        lambda: safetensors.deserialize(content)
    )
