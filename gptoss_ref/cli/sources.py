"""Where a command takes its checkpoint from, and the model that is made of it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptoss_ref.model import Model


def source(model: str, download: bool) -> str:
    """What to load for a MODEL argument; with `download`, a Hub id is fetched first."""
    if not download:
        return model
    from gptoss_ref.checkpoint import download as fetch

    return str(fetch(model))


def load_model(args: argparse.Namespace) -> Model:
    """The model of a command with the model options, its kernels compiled."""
    from gptoss_ref.model import load

    model = load(source(args.model, args.download), backend=args.backend, policy=args.policy)
    if model.backend.name == "numba":
        from gptoss_ref.cli.compiling import compile_once

        compile_once()
    return model
