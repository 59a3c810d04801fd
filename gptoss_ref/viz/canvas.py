"""The Figure that the functions return. Imports matplotlib: import it inside functions only."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class Drawing(Figure):
    """A Figure that a notebook shows, though pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()
