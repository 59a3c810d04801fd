"""Safe reads from an untrusted folder, memory of mapped files, and atomic writes."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from gptoss_ref.errors import ConfigError, GptOssError

MAX_TEXT = 100_000_000
"""Largest size of a JSON file in bytes; the released tokenizer.json has 28 million."""

_PACKAGE = Path(__file__).resolve().parent


def outside(path: Path, folder: Path) -> str | None:
    """Why ``path`` may not be read as a file of ``folder``; None if it may, or does not exist.

    An untrusted checkpoint could contain a symbolic or hard link to a private file of the user. So
    the file that links lead to must be a regular file within the folder, and all its names (hard
    links) must be in the folder that contains it. Two exceptions: in a Hugging
    Face cache, ``models--ORG--NAME/snapshots/REVISION/FILE`` is a link to
    ``models--ORG--NAME/blobs/HASH``; and uv and conda install this package's own files as hard
    links.
    """
    try:
        target, home = path.resolve(), folder.resolve()
        if home not in target.parents and target.parent not in _blobs(home):
            return "is a link that leaves the folder"
        found = target.stat()
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if stat.S_ISDIR(found.st_mode):
        return None  # opening it raises the error
    if not stat.S_ISREG(found.st_mode):
        return "is not a regular file"
    if found.st_nlink > 1 and _PACKAGE not in target.parents:
        names = sum(_is_same(other, found) for other in os.scandir(target.parent))
        if found.st_nlink > names:
            return (
                f"has {found.st_nlink - names} other names (hard links) outside the folder: "
                "expected a copy of the file"
            )
    return None


def _blobs(home: Path) -> list[Path]:
    """The ``blobs`` folder of the Hugging Face cache, if ``home`` is a snapshot in it."""
    return [
        repository / "blobs"
        for snapshots, repository in zip(home.parents, home.parents[1:], strict=False)
        if snapshots.name == "snapshots" and repository.name.startswith("models--")
    ]


def _is_same(entry: os.DirEntry[str], found: os.stat_result) -> bool:
    other = os.lstat(entry.path)
    return (other.st_ino, other.st_dev) == (found.st_ino, found.st_dev)


def is_special(path: Path) -> bool:
    """Whether this is a pipe, a socket or a device, which have no size."""
    return path.exists() and not path.is_file() and not path.is_dir()


def read_bounded(path: Path) -> bytes:
    """The bytes of a text file of at most MAX_TEXT bytes.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is larger.
    """
    if is_special(path):
        raise OSError(0, "not a regular file", str(path))
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_TEXT:
            raise OSError(0, f"{size} bytes, more than {MAX_TEXT}", str(path))
        return file.read()


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises ConfigError if the file is missing or larger than MAX_TEXT; see parse_object.
    """
    try:
        content = read_bounded(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        reason = "it is a folder" if path.is_dir() else error.strerror
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    return parse_object(content, path)


def parse_object(content: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in a file's content; ConfigError for other content or a repeated key."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise ConfigError(f"{path}: the key {key!r} appears twice")
            seen[key] = value
        return seen

    try:
        value = json.loads(content, object_pairs_hook=unique)
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {kind_of(value)}")
    return value


def kind_of(value: Any) -> str:
    """The type of a JSON value in words."""
    names = {list: "a list", str: "a string", bool: "true or false", int: "a number"}
    return names.get(type(value), "a number" if isinstance(value, float) else "null")


@contextlib.contextmanager
def replacing(path: Path, error: type[GptOssError] = GptOssError) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path``; rename it to ``path`` if the block succeeds.

    An existing file is replaced only then. A link is replaced, not followed.

    Raises:
        GptOssError: the file cannot be written; its class is ``error``.
    """
    if path.is_dir():  # checked before the work, not after it
        raise error(f"{path}: cannot be written: it is a folder")
    if is_special(path):  # root could replace /dev/null
        raise error(f"{path}: cannot be written: it is not a regular file")
    staging = path.parent / f".{path.name}.{os.urandom(6).hex()}.partial"
    try:
        with staging.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    except OSError as failure:
        staging.unlink(missing_ok=True)
        raise error(f"{path}: cannot be written: {failure.strerror or failure}") from None
    except BaseException:  # also Ctrl-C
        staging.unlink(missing_ok=True)
        raise


def release(arrays: Iterable[Any]) -> None:
    """Let the system drop the pages of the mapped files behind some arrays.

    Until then, every page of a mapped file that was read counts as memory of this process. A page
    that is used again is read again. Arrays that are not views of a file that is mapped for reading
    only are ignored: a page that was written may exist nowhere else.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    maps = {id(found): found for array in arrays if (found := _map_behind(array)) is not None}
    for found in maps.values():
        with memoryview(found) as view:
            readonly = view.readonly
        if readonly:
            with contextlib.suppress(OSError):  # locked pages; it is only advice
                found.madvise(mmap.MADV_DONTNEED)


def _map_behind(view: Any) -> mmap.mmap | None:
    """The mapped file of which an array is a view; None if it is none."""
    while view is not None and not isinstance(view, mmap.mmap):
        view = view.obj if isinstance(view, memoryview) else getattr(view, "base", None)
    return view
