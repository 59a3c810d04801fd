"""The catalogue of rendering bugs; most of them are publicly reported."""

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
    bugs_parameters,
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
    bugs_parameters,
)  # importing a module adds its bugs to the catalogue

BUGS: tuple[RenderingBug, ...] = tuple(
    one for module in _MODULES for one in bug.CATALOGUE[module.__name__]
)
"""All rendering bugs, including forms that are not wrong."""

_BY_NAME = {one.name: one for one in BUGS}


def rendering_bug(name: str) -> RenderingBug:
    """The rendering bug with that name.

    Raises:
        GptOssError: it is unknown; the message suggests the nearest name.

    >>> rendering_bug("return-in-history").rule
    'stop'
    """
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.0)
        raise GptOssError(f"unknown rendering bug {name!r}: did you mean {near[0]!r}?")
    return _BY_NAME[name]
