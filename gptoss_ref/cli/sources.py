"""Checkpoint, prompt and model from the arguments of a command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from gptoss_ref.cli.options import UsageError
from gptoss_ref.errors import HarmonyError

if TYPE_CHECKING:
    from gptoss_ref.chat.tokenizer import Tokenizer
    from gptoss_ref.model import Model


def source(model: str, download: bool) -> str:
    """The path or name to load for a MODEL argument; with `download`, a Hub id is downloaded."""
    if not download:
        return model
    from gptoss_ref.checkpoint import download as fetch

    return str(fetch(model))


def encoded(text: str, tokenizer: Tokenizer, *, chat: bool) -> list[int]:
    """The token ids of a text, or of a Harmony chat in which it is the user's message.

    Raises:
        HarmonyError: a chat with an empty text.
    """
    if not chat:
        return tokenizer.encode(text)
    from gptoss_ref.chat import build_conversation, render_conversation

    if not text.strip():
        raise HarmonyError("the prompt is empty: expected a text")
    return render_conversation(build_conversation(text), tokenizer)


def prompt_of(args: argparse.Namespace, tokenizer: Callable[[], Tokenizer]) -> list[int] | None:
    """The ids of --tokens, or of --prompt with or without --chat; None if neither is given.

    Raises:
        UsageError: --chat without --prompt.
    """
    if args.prompt is not None:
        return encoded(args.prompt, tokenizer(), chat=args.chat)
    if args.chat:
        raise UsageError("--chat needs a prompt: expected --prompt TEXT")
    ids: list[int] | None = args.tokens
    return ids


def load_model(args: argparse.Namespace, *, compiled: bool = True) -> Model:
    """The model for a command with model options; its kernels are compiled unless told otherwise.

    A command that checks more input calls :func:`compile_kernels` itself, after the checks.
    """
    from gptoss_ref.model import load

    model = load(source(args.model, args.download), backend=args.backend, policy=args.policy)
    if compiled:
        compile_kernels(model)
    return model


def compile_kernels(model: Model) -> None:
    """Compile the kernels if the model uses them and the cache does not have them."""
    if model.backend.name == "numba":
        from gptoss_ref.cli.compiling import compile_once

        compile_once(model.config.width)
