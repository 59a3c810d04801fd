"""Find a checkpoint: the bundled one, a folder, or a snapshot in the local Hugging Face cache.

Only `download` uses the network, and only an explicit request calls it.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from gptoss_ref._extras import install_line
from gptoss_ref.checkpoint.made import MADE, made
from gptoss_ref.errors import CheckpointError

TINY = "tiny"
_EXPECTED = "expected a checkpoint folder, 'tiny', or a Hub id like openai/gpt-oss-20b"
_RELEASED = re.compile(r"(gpt-oss-)?(20b|120b)")  # configurations, for `info`
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Without the repository's other copies of the weights: the OpenAI layout and a Metal file.
_DOWNLOADED = ("*.json", "*.jinja", "*.safetensors", "LICENSE", "USAGE_POLICY")
_NOT_DOWNLOADED = ("original/*", "metal/*")


def locate(path: str | Path) -> tuple[Path, Path]:
    """(folder of the tensors, folder of the tokenizer and other companions) of a checkpoint.

    Args:
        path: `"tiny"` for the bundled checkpoint (`./tiny` for a folder of that name), or one of
            ``MADE`` (in ``checkpoint/made.py``); a folder; or a Hub id such as
            `openai/gpt-oss-20b` that is in the local cache. A folder with no tensors of its own
            stands for its subfolder `original`.

    Raises:
        CheckpointError: nothing is there, or `path` is not a path.
    """
    if not isinstance(path, str | os.PathLike):
        raise CheckpointError(f"{path!r} is not a path; {_EXPECTED}")
    if path == "":
        raise CheckpointError(f"the path of the checkpoint is empty; {_EXPECTED}")
    if path == TINY:
        folder = Path(__file__).parents[1] / "data" / TINY
    elif path in MADE:
        folder = made(str(path))
    else:
        folder = Path(path).expanduser()
        if not folder.exists() and _HUB_ID.fullmatch(str(path)):
            folder = cached(str(path))
    if not folder.exists():
        if _RELEASED.fullmatch(str(path)):
            raise CheckpointError(
                f"{path}: no such folder; this name stands for a configuration without weights, "
                f"for `info` only; {_EXPECTED}"
            )
        near = difflib.get_close_matches(str(path), (TINY, *MADE))
        hint = f": did you mean {near[0]}?" if near else f"; {_EXPECTED}"
        raise CheckpointError(f"{path}: no such folder{hint}")
    if not folder.is_dir():
        raise CheckpointError(f"{path}: expected a checkpoint folder, not a file")
    original = folder / "original"
    if not _has_tensors(folder) and _has_tensors(original):
        if folder.resolve() not in original.resolve().parents:
            raise CheckpointError(f"{original}: is a link that leaves the folder")
        return original, folder
    whole = any((folder / name).exists() for name in ("tokenizer.json", "generation_config.json"))
    root = folder.parent if folder.name == "original" and not whole else folder
    if not _has_tensors(folder) and not any((f / "config.json").exists() for f in (folder, root)):
        raise CheckpointError(
            f"{path}: holds neither config.json nor .safetensors files; expected a checkpoint "
            "folder, which holds both"
        )
    return folder, root


def _has_tensors(folder: Path) -> bool:
    return next(folder.glob("*.safetensors"), None) is not None


def cache_folder() -> Path:
    """The folder of the local Hugging Face cache, by the rules of huggingface_hub.

    HF_HUB_CACHE, else HUGGINGFACE_HUB_CACHE (its older name), else HF_HOME/hub, else
    XDG_CACHE_HOME/huggingface/hub, else ~/.cache/huggingface/hub.
    """
    direct = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if direct:
        return _expand(direct)
    home = os.environ.get("HF_HOME")
    if home:
        return _expand(home) / "hub"
    return _expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def _expand(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()


def cached(hub_id: str) -> Path:
    """The snapshot folder of a Hub id in the local cache: that of `main`, or the only one.

    Raises CheckpointError if the cache does not hold it.
    """
    repository = cache_folder() / f"models--{hub_id.replace('/', '--')}"
    snapshots = repository / "snapshots"
    try:
        revision = (repository / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        revision = ""
    if re.fullmatch(r"[0-9A-Za-z]+", revision) and (snapshots / revision).is_dir():
        return snapshots / revision
    found = sorted(p for p in snapshots.glob("*") if p.is_dir())
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"{hub_id}: {snapshots} holds {len(found)} revisions and no refs/main; "
            "expected the folder of one of them"
        )
    raise CheckpointError(
        f"{hub_id}: no such folder, and the Hugging Face cache {cache_folder()} does not hold it; "
        "expected a checkpoint folder, 'tiny', or a cached Hub id (--download fetches one)"
    )


def download(hub_id: str) -> Path:
    """Downloads the Hugging Face layout of a Hub repository; returns its snapshot folder.

    No other function uses the network. Needs the extra `hub`.
    Raises CheckpointError without it, for a malformed id, and if the download fails.
    """
    if not _HUB_ID.fullmatch(hub_id):
        raise CheckpointError(
            f"{hub_id or repr(hub_id)}: not a Hub id, which looks like openai/gpt-oss-20b"
        )
    try:
        import huggingface_hub
    except ImportError:
        raise CheckpointError(
            f"--download needs huggingface_hub, which is not installed: {install_line('hub')}"
        ) from None
    try:
        folder = huggingface_hub.snapshot_download(
            hub_id, allow_patterns=list(_DOWNLOADED), ignore_patterns=list(_NOT_DOWNLOADED)
        )
    except Exception as error:  # the hub's errors share no base class
        line = str(error).strip().splitlines()
        raise CheckpointError(
            f"{hub_id}: download failed: {line[0] if line else type(error).__name__}"
        ) from error
    return Path(folder)
