"""Finding checkpoints: the bundled one, folders, and the local Hugging Face cache by its rules."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptoss_ref import load, load_checkpoint
from gptoss_ref.checkpoint import cache_folder, cached, download, locate
from gptoss_ref.checkpoint.summary import RELEASED
from gptoss_ref.errors import CheckpointError
from tests.support.checkpoint_files import write_hf, write_openai

VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
HASH = "0123456789abcdef"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a current folder without any checkpoint."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "hub"


def store(cache: Path, hub_id: str, revision: str = HASH, main: bool = True) -> Path:
    """A checkpoint as the hub's own library stores it: blobs, and links to them in a snapshot."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / revision
    source = write_hf(cache.parent / f"source-{revision}", shards=2)
    (repository / "blobs").mkdir(parents=True, exist_ok=True)
    snapshot.mkdir(parents=True)
    for file in source.iterdir():
        blob = repository / "blobs" / f"{revision}-{file.name}.hash"
        shutil.move(file, blob)
        os.symlink(os.path.relpath(blob, snapshot), snapshot / file.name)
    if main:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(revision)
    return snapshot


@pytest.mark.parametrize("set_", [(0, 1, 2, 3), (1, 2, 3), (2, 3), (3,), ()])
def test_cache_folder_follows_the_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_: tuple[int, ...]
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for i in set_:
        monkeypatch.setenv(VARIABLES[i], str(tmp_path / str(i)))
    expected = {
        0: tmp_path / "0",
        1: tmp_path / "1",
        2: tmp_path / "2" / "hub",
        3: tmp_path / "3" / "huggingface" / "hub",
    }
    home = tmp_path / "home" / ".cache" / "huggingface" / "hub"
    assert cache_folder() == (expected[set_[0]] if set_ else home)


def test_cache_folder_expands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", "~/a/$HOME_OF_B")
    monkeypatch.setenv("HOME_OF_B", "b")
    assert cache_folder() == tmp_path / "a" / "b"


def test_cached_hub_id_loads(cache: Path) -> None:
    snapshot = store(cache, "openai/gpt-oss-20b")
    assert cached("openai/gpt-oss-20b") == snapshot
    checkpoint = load_checkpoint("openai/gpt-oss-20b")
    assert checkpoint.path == snapshot
    assert checkpoint.layout == "hf"


def test_revision_is_that_of_main(cache: Path) -> None:
    store(cache, "a/b", "aaaa", main=False)
    assert cached("a/b").name == "aaaa"
    store(cache, "a/b", "bbbb", main=False)
    with pytest.raises(CheckpointError, match=r"holds 2 revisions and no refs/main"):
        cached("a/b")
    (cache / "models--a--b" / "refs").mkdir()
    for revision in ("aaaa", "bbbb"):
        (cache / "models--a--b" / "refs" / "main").write_text(revision + "\n")
        assert cached("a/b").name == revision
    (cache / "models--a--b" / "refs" / "main").write_text("../../elsewhere")
    with pytest.raises(CheckpointError, match="holds 2 revisions"):
        cached("a/b")


def test_incomplete_download(cache: Path) -> None:
    """A snapshot whose link leads nowhere, as after a download that was cut off."""
    snapshot = store(cache, "a/b")
    (snapshot / "model-00002-of-00002.safetensors").resolve().unlink()
    with pytest.raises(
        CheckpointError, match=r"'model-00002-of-00002\.safetensors', which does not exist"
    ):
        load_checkpoint("a/b")


def test_not_cached(cache: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"a/b: no such folder, and the .* cache .*--download"
    ):
        load_checkpoint("a/b")
    with pytest.raises(CheckpointError, match="no such folder; expected"):
        load_checkpoint("neither-a-folder-nor-an-id")
    with pytest.raises(CheckpointError, match="no such folder; expected"):
        load_checkpoint("../../etc/passwd/x")


@pytest.mark.parametrize("path", [None, 5, b"tiny", ["tiny"], True])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises(CheckpointError, match=r"is not a path; expected a checkpoint folder"):
        load(path)


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_name_is_no_checkpoint(cache: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{name}: no such folder; this name stands"):
        locate(name)
    assert locate(write_hf(Path(name))) == (Path(name), Path(name))


def test_a_folder_comes_before_the_cache(cache: Path) -> None:
    store(cache, "a/b")
    write_openai(Path("a") / "b")
    assert load_checkpoint("a/b").layout == "openai"


def test_tiny_is_the_bundled_one(cache: Path) -> None:
    """`tiny` is never a folder of the current directory; `./tiny` is."""
    write_openai(Path("tiny"))
    folder, root = locate("tiny")
    assert folder == root
    assert folder.parent.name == "data"
    assert folder.parent.parent.name == "gptoss_ref"
    assert load_checkpoint("./tiny").layout == "openai"
    assert load_checkpoint(Path("tiny")).layout == "openai"


def test_download_asks_for_the_hugging_face_layout(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def snapshot_download(hub_id: str, **options: Any) -> str:
        asked.append((hub_id, options))
        return str(store(cache, hub_id))

    fake = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    folder = download("openai/gpt-oss-20b")
    assert load_checkpoint(folder).layout == "hf"
    ((hub_id, options),) = asked
    assert hub_id == "openai/gpt-oss-20b"
    assert "original/*" in options["ignore_patterns"]
    assert "*.safetensors" in options["allow_patterns"]


def test_download_errors_are_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(hub_id: str, **options: Any) -> str:
        raise OSError("no route to host\n(Request ID: 7)")

    fake = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    with pytest.raises(CheckpointError, match=r"^a/b: download failed: no route to host$"):
        download("a/b")
    with pytest.raises(CheckpointError, match="not a Hub id"):
        download("../b")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="which is not installed: python -m pip install"):
        download("a/b")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "the path of the checkpoint is empty; expected a checkpoint folder, 'tiny', or a Hub"),
        (3, "3 is not a path; expected a checkpoint folder, 'tiny', or a Hub id like openai/gpt-"),
        ("tinny", "tinny: no such folder: did you mean tiny?"),
        ("20b", "20b: no such folder; this name stands for a configuration without weights, for `"),
        ("gpt-oss-120b", "gpt-oss-120b: no such folder; this name stands for a configuration wit"),
        ("elsewhere", "elsewhere: no such folder; expected a checkpoint folder, 'tiny', or a Hub"),
    ],
)
def test_names_of_nothing(
    path: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        locate(path)
    assert str(caught.value).startswith(message)
