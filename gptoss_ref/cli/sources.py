"""Where a command takes its checkpoint from."""

from __future__ import annotations


def source(model: str, download: bool) -> str:
    """What to load for a MODEL argument; with `download`, a Hub id is fetched first."""
    if not download:
        return model
    from gptoss_ref.checkpoint import download as fetch

    return str(fetch(model))
