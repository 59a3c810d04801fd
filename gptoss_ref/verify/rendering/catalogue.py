"""The catalogue: what others got wrong in public, each as one rule of the renderer replaced."""

from __future__ import annotations

import difflib

from gptoss_ref.errors import GptOssError
from gptoss_ref.verify.rendering import (
    bug,
    bugs_contents,
    bugs_ends,
    bugs_headers,
    bugs_history,
    bugs_opening,
    bugs_tools,
)
from gptoss_ref.verify.rendering.bug import RenderingBug

_MODULES = (
    bugs_history,
    bugs_headers,
    bugs_contents,
    bugs_ends,
    bugs_opening,
    bugs_tools,
)  # each fills the catalogue when it is imported

BUGS: tuple[RenderingBug, ...] = tuple(
    one for module in _MODULES for one in bug.CATALOGUE[module.__name__]
)
"""Every rendering bug, and the forms that are not wrong."""

_BY_NAME = {one.name: one for one in BUGS}


def rendering_bug(name: str) -> RenderingBug:
    """The rendering bug of that name.

    Raises:
        GptOssError: there is none; the message suggests the nearest.

    >>> rendering_bug("return-in-history").rule
    'stop'
    """
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.0)
        raise GptOssError(f"there is no rendering bug {name!r}: did you mean {near[0]!r}?")
    return _BY_NAME[name]
