"""One self-contained HTML page to look inside a pass: ``gptoss-ref inspect`` and :func:`page`.

It needs no network, no extra and no build step: page.html, page.css and page.js are joined with the
data (docs/decisions/0015).
"""

from gptoss_ref.viz.inspector.build import LIMIT, page, write
from gptoss_ref.viz.inspector.recording import TAPS

__all__ = ["LIMIT", "TAPS", "page", "write"]
