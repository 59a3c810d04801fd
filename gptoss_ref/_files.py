"""Atomic writes: a file is replaced as a whole, or stays as it was."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gptoss_ref.errors import GptOssError


@contextlib.contextmanager
def replacing(path: Path, error: type[GptOssError] = GptOssError) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path``; rename it to ``path`` if the block succeeds.

    An existing file is replaced only then.

    Raises:
        GptOssError: the file cannot be written; of the class ``error``.
    """
    if path.is_dir():  # asked now: at the end all that was written would be lost
        raise error(f"{path}: cannot be written: it is a folder")
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
