"""The catalogue: what others got wrong in public, each as one rule of the renderer replaced."""

from __future__ import annotations

import difflib

from gptoss_ref.errors import GptOssError
from gptoss_ref.verify.rendering import bug, bugs_messages, bugs_opening, bugs_tools
from gptoss_ref.verify.rendering.bug import RenderingBug

# each module fills the catalogue when it is imported
assert all((bugs_opening, bugs_tools, bugs_messages))

BUGS: tuple[RenderingBug, ...] = tuple(bug.CATALOGUE)
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
