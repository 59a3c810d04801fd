"""The writer alone: where shards end, what a file holds, and folders that are whole or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from gptoss_ref.checkpoint.writer import Output, new_folder, write_shards
from gptoss_ref.errors import CheckpointError

INDEX = "model.safetensors.index.json"


def output(name: str, values: np.ndarray, dtype: str = "U8") -> Output:
    """In two pieces."""

    def chunks() -> Iterator[np.ndarray]:
        yield values[:1]
        yield values[1:]

    return Output(name, dtype, values.shape, chunks)


def eight(name: str) -> Output:
    return output(name, np.arange(8, dtype=np.uint8))


def test_a_shard_holds_as_much_as_it_may(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    large = output("large", np.zeros((5, 5), np.uint8))
    outputs = [eight("a"), eight("b"), eight("c"), large, eight("d")]
    names = write_shards(tmp_path, outputs, 16, lambda *call: seen.append(call))
    assert names == [f"model-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4)]
    assert [sorted(load_file(tmp_path / name)) for name in names] == [
        ["a", "b"], ["c"], ["large"], ["d"]
    ]  # fmt: skip
    assert json.loads((tmp_path / INDEX).read_text("utf-8")) == {
        "metadata": {"total_size": 57},
        "weight_map": {
            "a": names[0], "b": names[0], "c": names[1], "large": names[2], "d": names[3]
        },
    }  # fmt: skip
    done = [1, 8, 9, 16, 17, 24, 29, 49, 50, 57]
    order = [name for name in ("a", "b", "c", "large", "d") for _ in range(2)]
    assert seen == [(at, 57, name) for at, name in zip(done, order, strict=True)]


def test_one_file_has_no_index(tmp_path: Path) -> None:
    wide = np.arange(3, dtype=np.float64)
    outputs = [output("odd", np.arange(7, dtype=np.uint8)), output("wide", wide, "F64")]
    outputs.append(output("half", np.arange(4, dtype=np.uint16).reshape(2, 2), "BF16"))
    assert write_shards(tmp_path, outputs, 39, None) == ["model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        np.testing.assert_array_equal(file.get_tensor("wide"), wide)
        assert file.get_slice("half").get_shape() == [2, 2]
    data = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    assert list(json.loads(data[8 : 8 + length])) == ["__metadata__", "wide", "half", "odd"]
    assert b": " not in data[8 : 8 + length]


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot open folders")
def test_files_and_folders_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, then its folder, then the folder that has the new name."""
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino))
    with new_folder(tmp_path / "dst") as folder:
        (folder / "file").write_text("x")
    written = (tmp_path / "dst" / "file", tmp_path / "dst", tmp_path)
    assert flushed == [path.stat().st_ino for path in written]


def test_data_of_another_size(tmp_path: Path) -> None:
    few = Output("few", "U8", (9,), lambda: iter([np.zeros(8, np.uint8)]))
    with pytest.raises(RuntimeError, match="few: -1 bytes too many"):
        write_shards(tmp_path, [few], 100, None)


def test_a_folder_that_cannot_be_finished(tmp_path: Path) -> None:
    target = tmp_path / "dst"

    def fail(error: OSError) -> None:
        with new_folder(target) as folder:
            (folder / "half").write_text("x")
            raise error

    for error, said in ((OSError("odd"), "odd"), (OSError(5, "I/O error"), "I/O error")):
        with pytest.raises(CheckpointError) as caught:
            fail(error)
        assert str(caught.value) == f"{target}: cannot be written: {said}"
        assert not list(tmp_path.iterdir())
    with new_folder(target) as folder:
        (folder / "whole").write_text("x")
        assert folder.parent == tmp_path
        assert folder.name.startswith(".dst.")
        assert folder.name.endswith(".partial")
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["dst"]
    assert (target / "whole").read_text() == "x"
