"""What SECURITY.md promises about files from strangers, as far as no other test holds it."""

from __future__ import annotations

import ast
import io
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import gptoss_ref
from gptoss_ref.chat import load_tokenizer
from gptoss_ref.checkpoint import convert, load_checkpoint
from gptoss_ref.checkpoint.reader import SafetensorsFile
from gptoss_ref.cli import main
from gptoss_ref.errors import CheckpointError, EndpointError, GptOssError, TraceError
from gptoss_ref.tracing import npz
from gptoss_ref.tracing.npz import load_npz
from tests.fuzz.targets import _read_response

PACKAGE = Path(gptoss_ref.__file__).parent
TINY = PACKAGE / "data" / "tiny"
on_posix = pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX systems")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint in an otherwise empty folder."""
    return Path(shutil.copytree(TINY, tmp_path / "place" / "model"))


# --- no code ---

PAYLOAD = "import pathlib; pathlib.Path({marker!r}).touch()"
WATCH = """
import os, sys
opened, folder = set(), os.path.realpath(sys.argv[1])

def watch(event, args):
    assert event != "pickle.find_class", args
    assert not event.startswith(("subprocess.", "os.exec", "os.system", "os.posix_spawn")), event
    if event == "open" and isinstance(args[0], (str, bytes)):
        path = os.path.realpath(os.fsdecode(args[0]))
        if os.path.dirname(path) == folder:
            opened.add(os.path.basename(path))

import numpy, numba, safetensors, tiktoken  # which may do as they like
import gptoss_ref as gr
from gptoss_ref.chat import Message, render_conversation
before = {*sys.modules}
sys.addaudithook(watch)
model = gr.load(folder, backend="numpy")
tokens = render_conversation([Message("user", "{{ 7 * 7 }}")], model.tokenizer)
assert "{{ 7 * 7 }}" in model.tokenizer.decode(tokens)
model(tokens[:3])
print(*sorted(opened))
gr.convert(folder, sys.argv[2])
assert not {"jinja2", "yaml", "torch", "transformers"} & ({*sys.modules} - before)
"""


def test_no_code_of_a_checkpoint_runs(folder: Path, tmp_path: Path) -> None:
    """Every place in which a checkpoint can hold code for some library, and what is opened."""
    marker = str(tmp_path / "ran")
    code = PAYLOAD.format(marker=marker)
    for name in ("modeling_evil.py", "tokenizer.py", "numpy.py", "sitecustomize.py", "setup.py"):
        (folder / name).write_text(code)
    template = "{{ cycler.__init__.__globals__.os.system('touch " + marker + "') }}"
    (folder / "chat_template.jinja").write_text(template)
    pickled = b"cbuiltins\nexec\n(V" + code.encode() + b"\ntR."
    for name in ("pytorch_model.bin", "model.pkl", "training_args.bin"):
        (folder / name).write_bytes(pickled)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "auto_map": {"AutoModelForCausalLM": "modeling_evil.Model"},
        "_attn_implementation_internal": "stranger/kernel",
        "attn_implementation": "stranger/kernel",
    }
    (folder / "config.json").write_text(json.dumps(config))
    run = subprocess.run(
        [sys.executable, "-c", WATCH, str(folder), str(tmp_path / "new")],
        capture_output=True,
        text=True,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    read = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert {*run.stdout.split()} == read
    assert not os.path.exists(marker)
    written = json.loads((tmp_path / "new" / "config.json").read_text())
    assert not {"auto_map", "attn_implementation", "_attn_implementation_internal"} & {*written}
    assert not {*Path(tmp_path / "new").glob("*.py"), *Path(tmp_path / "new").glob("*.bin")}


RUNS_CODE = {
    "pickle", "marshal", "shelve", "dill", "joblib", "jinja2", "yaml", "runpy", "code",
    "subprocess", "importlib.util",
}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__", "np.load", "torch.load"}
ALLOWED = {
    # the file that a user gives to `check` is run: that is what it is for
    ("verify/vectors/exercise.py", "importlib.util"),
    # this package itself, in another process, to compile kernels behind a conversation
    ("cli/compiling.py", "subprocess"),
    # the template that a user gives to `harmony check`: in a sandbox, in a process with limits
    ("verify/rendering/template.py", "importlib.util"),
    ("verify/rendering/template.py", "subprocess"),
    ("verify/rendering/template_worker.py", "jinja2"),
}


def test_the_package_holds_nothing_that_runs_a_file() -> None:
    """No pickle, no eval; a template engine and processes at the places that ALLOWED lists."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        where = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names]
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                found |= {(where, name) for name in names if name in RUNS_CODE}
            if isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS:
                found.add((where, ast.unparse(node.func)))
    assert found <= ALLOWED, found - ALLOWED


# --- no way out of the folder ---


def opens(folder: Path) -> None:
    """Everything that is read of a checkpoint."""
    checkpoint = load_checkpoint(folder)
    load_tokenizer(folder, checkpoint.config)
    convert(folder, folder.parent / "new")


FILES = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
         "tokenizer_config.json", "chat_template.jinja", "LICENSE")  # fmt: skip


@on_posix
@pytest.mark.parametrize("kind", ["symlink", "relative", "hard link", "pipe"])
@pytest.mark.parametrize("name", FILES)
def test_nothing_outside_the_folder_is_read(folder: Path, name: str, kind: str) -> None:
    secret = folder.parent / "secret"
    inside = folder / name
    shutil.move(inside, secret) if inside.exists() else secret.write_text("secret")
    if kind == "symlink":
        os.symlink(secret.resolve(), inside)
    elif kind == "relative":
        os.symlink("../model/../secret", inside)
    elif kind == "hard link":
        os.link(secret, inside)
    else:
        os.mkfifo(inside)  # to open it would wait for ever
    with pytest.raises(GptOssError, match=f"{name}.*(leaves|outside) the folder|regular file"):
        opens(folder)
    assert not (folder.parent / "new").exists()


@on_posix
def test_links_within_the_folder_are_files_like_others(folder: Path) -> None:
    (folder / "weights").mkdir()
    shutil.move(folder / "model.safetensors", folder / "weights" / "a")
    os.symlink("weights/a", folder / "model.safetensors")
    os.link(folder / "README.md", folder / "LICENSE")
    opens(folder)
    assert (folder.parent / "new" / "LICENSE").read_text() == (folder / "README.md").read_text()


@on_posix
def test_a_folder_that_is_a_link_itself_is_the_users_choice(folder: Path) -> None:
    os.symlink(folder, folder.parent / "link")
    opens(folder.parent / "link")


@on_posix
def test_a_subfolder_that_is_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "stranger").mkdir()
    os.symlink(folder, tmp_path / "stranger" / "original")
    with pytest.raises(CheckpointError, match="original: is a link that leaves the folder"):
        load_checkpoint(tmp_path / "stranger")


@on_posix
def test_only_the_blobs_of_the_same_repository_are_read(folder: Path, tmp_path: Path) -> None:
    """In a Hub cache every file is a link to a blob; another model's blobs are not its own."""
    for repository, allowed in (("models--a--b", True), ("models--c--private", False)):
        snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / "0f"
        blobs = tmp_path / "hub" / repository / "blobs"
        blobs.mkdir(parents=True)
        shutil.rmtree(snapshot, ignore_errors=True)
        shutil.copytree(folder, snapshot)
        for file in list(snapshot.iterdir()):
            shutil.move(file, blobs / file.name)
            os.symlink(os.path.relpath(blobs / file.name, snapshot), file)
        if allowed:
            opens(snapshot)
        else:
            with pytest.raises(CheckpointError, match="is a link that leaves the folder"):
                load_checkpoint(snapshot)


@on_posix
def test_writing_replaces_a_link_and_leaves_its_target(tmp_path: Path) -> None:
    """`-o FILE` onto a link that another user put there; folders are refused."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    os.symlink(victim, tmp_path / "sym.trace")
    os.link(victim, tmp_path / "hard.trace")
    for name in ("sym.trace", "hard.trace"):
        gptoss_ref.trace(gptoss_ref.load("tiny"), [1, 2], taps="logits", path=tmp_path / name)
        assert victim.read_text() == "mine"
        assert not (tmp_path / name).is_symlink()
    os.symlink(tmp_path / "elsewhere", tmp_path / "link")
    for act in (lambda: convert("tiny", tmp_path / "link"), lambda: vectors(tmp_path / "link")):
        with pytest.raises(CheckpointError, match="already exists"):
            act()
    assert not (tmp_path / "elsewhere").exists()


def vectors(place: Path) -> None:
    from gptoss_ref.verify.vectors import write_vectors

    write_vectors(place)


@on_posix
def test_no_device_is_replaced(tmp_path: Path) -> None:
    """As root, a file renamed to /dev/null would take its place."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(TraceError, match="not a regular file"):
            gptoss_ref.trace(gptoss_ref.load("tiny"), [1, 2], path=path)
    assert not os.path.isfile(os.devnull)


# --- sizes ---


def at_most(nbytes: int, act: Callable[[], Any], error: type[GptOssError], match: str) -> None:
    """`act` raises, and Python's memory has grown by no more than that at any time."""
    tracemalloc.start()
    try:
        with pytest.raises(error, match=match):
            act()
        assert tracemalloc.get_traced_memory()[1] < nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("length", "header", "match"),
    [
        (None, {"dtype": "U8", "shape": [2**50], "data_offsets": [0, 2**50]}, "the tensors need"),
        (None, {"dtype": "U8", "shape": [2**70], "data_offsets": [0, 1]}, "shape must be"),
        (None, {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 0]}, "shape must be"),
        (None, {"dtype": "F32", "shape": [2**30, 2**29], "data_offsets": [0, 8]}, "takes 2.3"),
        (99_999_999, {}, "truncated: the header has 99999999 bytes"),
        (2**63, {}, "claims a header of"),
    ],
)
def test_declared_sizes_are_checked_before_memory_is_taken(
    tmp_path: Path, length: int | None, header: dict[str, Any], match: str
) -> None:
    text = json.dumps({"a": header}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes((length or len(text)).to_bytes(8, "little") + text)
    at_most(1 << 20, lambda: SafetensorsFile(path), CheckpointError, match)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_a_text_file_of_any_size_is_not_read(folder: Path, name: str) -> None:
    with (folder / name).open("r+b") as file:
        file.truncate(1 << 40)  # takes no room
    at_most(1 << 20, lambda: opens(folder), GptOssError, "more than 100000000")


def npy(shape: str, data: bytes = b"", descr: str = "<f8") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ("(10**9,)", "malformed|Cannot parse|not a complete"),
        ("(1000000000000,)", "takes 8000000000000 bytes, the file holds 16"),
        ("(-2,)", "takes -16 bytes"),
        ("(-1, -2)", r"\(-1, -2\) takes 16 bytes"),
        ("(2.0,)", "not a complete"),
    ],
)
def test_the_shape_of_an_npz_is_checked_first(tmp_path: Path, shape: str, match: str) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("logits.npy", npy(shape, bytes(16)))
    at_most(1 << 20, lambda: load_npz(path), TraceError, match)


def test_no_pickle_in_an_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.array([{}], object))
    with pytest.raises(TraceError, match="holds Python objects"):
        load_npz(tmp_path / "a.npz")


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 MiB of zeros for each of 9 KB; and many names for the same bytes."""
    monkeypatch.setattr(npz, "SMALL", 1 << 16)
    path = tmp_path / "a.npz"
    zeros = npy(f"({1 << 20},)", bytes(1 << 20), "|u1")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("logits.npy", zeros)
    at_most(1 << 17, lambda: load_npz(path), TraceError, "more than 250 times the size")
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = (len(zeros) // 100).to_bytes(4, "little")  # says it is small
    path.write_bytes(content)
    at_most(1 << 17, lambda: load_npz(path), TraceError, "takes 1048576 bytes, the file holds")
    shared = io.BytesIO()
    with zipfile.ZipFile(shared, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", npy("(99999,)", bytes(99999), "|u1"))
        first = file.infolist()[0]
        file.filelist.extend([first] * 99)
    path.write_bytes(shared.getvalue())
    at_most(1 << 20, lambda: load_npz(path), TraceError, "more than 250 times the size")


@pytest.mark.skipif(os.name == "nt", reason="Windows does not truncate a file in use")
def test_a_file_truncated_while_mapped(folder: Path, tmp_path: Path) -> None:
    """An error where it can be had: at the next tensor, and in a conversion at the next piece."""
    save_file({"a": np.zeros(50_000)}, tmp_path / "a.safetensors")
    file = SafetensorsFile(tmp_path / "a.safetensors")
    os.truncate(file.path, 4096)
    with pytest.raises(CheckpointError, match=r"was truncated while in use, from \d+ to 4096"):
        file.array("a")

    def progress(done: int, total: int, name: str) -> None:
        os.truncate(folder / "model.safetensors", 4096)

    for options in ({}, {"experts": "bfloat16"}):
        shutil.copy(TINY / "model.safetensors", folder)
        with pytest.raises(CheckpointError, match="was truncated while in use"):
            convert(folder, tmp_path / "new", progress=progress, **options)  # type: ignore[arg-type]
        assert not (tmp_path / "new").exists()


# --- answers, and what is shown ---


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 99999999999999999999",
        b"Content-Length: " + b"9" * 5000,
        b"Content-Length: -1",
        b"Content-Length: \xd9\xa3",
        b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 60_000,
        b"Transfer-Encoding: chunked\r\n\r\n-1",
    ],
)
def test_integers_of_an_http_answer_are_bounded(head: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n{"
    at_most(1 << 20, lambda: _read_response(answer), EndpointError, "http://fuzzed")


def test_an_error_message_obeys_no_control_character(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key of config.json that would rename the terminal, or hide a line."""
    config = {"num_hidden_layers": 1, "\x1b]0;owned\x07\x1b[2K\x9b1A": 1}
    openai = dict.fromkeys(gptoss_ref.GPT_OSS_20B.to_json("openai"), 1)
    (folder / "config.json").write_text(json.dumps(openai | config))
    assert main(["info", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "\\x1b]0;owned\\x07\\x1b[2K\\x9b1A" in said
    assert not {"\x1b", "\x07", "\x9b"} & {*said}


# --- the page itself ---

ROOT = Path(__file__).parents[1]


def named_tests(page: str) -> Iterator[tuple[Path, str]]:
    """`tests/a/test_b.py::test_c` wherever a page says so."""
    for word in page.replace("`", " ").split():
        if word.startswith("tests/") and "::" in word:
            file, _, name = word.partition("::")
            yield ROOT / file, name


def test_every_promise_names_tests_that_exist() -> None:
    page = (ROOT / "SECURITY.md").read_text("utf-8")
    named = list(named_tests(page))
    assert len(named) > 15
    for file, name in named:
        tree = ast.parse(file.read_text("utf-8"))
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{file.name} has no {name}"
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    for row in rows:
        assert "::test_" in row, f"no test holds: {row}"
