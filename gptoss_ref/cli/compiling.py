"""Compile the kernels at their first use, with a message that explains the wait."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import TYPE_CHECKING

from gptoss_ref.cli.console import notes

if TYPE_CHECKING:
    from gptoss_ref.chat import Chat


def compile_once(width: int | None = None) -> bool:
    """Compiles the kernels if necessary, with a spinner; returns whether they were compiled before.

    Args:
        width: of the model, ``config.width``; None: the kernels for all models.

    If the kernel cache cannot be written, a warning says so each time.
    """
    from gptoss_ref.kernels.runtime.jit import cache_folder
    from gptoss_ref.kernels.runtime.warmup import is_warm, warmup

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done_before = is_warm(width)
    for warning in caught:
        notes().line(f"warning: {warning.message}")
    if not done_before:
        once = ", once" if cache_folder() else ""
        with notes().status(f"compiling kernels{once}") as status:
            warmup(
                lambda name, done, steps: status(f"{name} ({done + 1} of {steps})"),
                width=width,
            )
    return done_before


class Behind:
    """Compiles the kernels in another process while a conversation runs on the NumPy layers.

    Args:
        chat: of a model that was loaded with the backend ``auto``. If it uses the NumPy layers,
            because its kernels are not compiled, the compilation starts, and :meth:`take_over`
            switches to the kernels.
    """

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._process: subprocess.Popen[bytes] | None = None
        if chat.model.backend.name == "numpy" and chat.model.policy.name == "float32":
            width = str(chat.model.config.width)
            command = (sys.executable, "-m", "gptoss_ref", "warmup", "--width", width)
            nothing = subprocess.DEVNULL
            self._process = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing)
            notes().line("(answering on the NumPy layers while the kernels compile)", dim=True)

    def take_over(self) -> None:
        """Switch to the kernels if they are compiled; the history is then computed again."""
        from gptoss_ref.backend import get_backend

        if self._process is None or self._process.poll() is None:
            return
        if self._process.returncode == 0:
            self._chat.model.backend = get_backend("numba")
            self._chat.prefix.restart()
            notes().line("(the kernels are compiled, and in use from now on)", dim=True)
        self._process = None

    def stop(self) -> None:
        """Stop the compilation at the end of the conversation; compiled kernels are kept."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
