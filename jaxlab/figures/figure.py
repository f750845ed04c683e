"""A matplotlib figure that a notebook shows, whatever its backend."""

import io

from matplotlib import figure


class Figure(figure.Figure):
    """matplotlib's Figure, shown as a PNG image where it is the result of a cell.

    `figure.savefig("name.png")` writes it. It belongs to no window and no global state,
    so nothing has to be closed.
    """

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()
