"""One self-contained page to look inside a pass: ``gptoss-ref inspect`` and :func:`page`.

The page needs no network, no extra and no build step: page.html, page.css and page.js are put
together as they are, with the numbers behind them (docs/decisions/0015).
"""

from gptoss_ref.viz.inspector.build import LIMIT, page, write
from gptoss_ref.viz.inspector.recording import TAPS

__all__ = ["LIMIT", "TAPS", "page", "write"]
