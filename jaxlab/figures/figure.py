"""A matplotlib figure that looks the same with any settings and names of the user."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib
from matplotlib import figure
from matplotlib.text import Text

from jaxlab.figures.fonts import MISSING, fonts_for
from pretrained.errors import printable

_LONGEST = 80  # letters of a name; longer ones are no names that a class has


class Figure(figure.Figure):
    """matplotlib's Figure, shown as a PNG image where it is the result of a cell.

    `figure.savefig("name.png")` writes it. It belongs to no window and no global state,
    so nothing has to be closed. `missing` has the letters that no installed font has,
    after it was written.
    """

    missing: str = ""

    def savefig(self, *args: Any, **keywords: Any) -> None:
        """Write the figure in its own style, with fonts for the letters it contains."""
        with own_style(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", MISSING)
            missing = ""
            for text in self.findobj(Text):
                fonts, lacking = fonts_for(text.get_text())
                missing += lacking
                if len(fonts) > 1:
                    text.set_fontfamily(fonts)
            self.missing = "".join(sorted(set(missing)))
            super().savefig(*args, **keywords)

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """Draw with matplotlib's default settings, and take no text for a formula.

    The user's matplotlibrc may need LaTeX, or fonts that are not installed.
    """
    defaults = {
        name: value
        for name, value in matplotlib.rcParamsDefault.items()
        if "backend" not in name
    }
    defaults |= {"text.parse_math": False, "text.usetex": False}
    with matplotlib.rc_context(defaults):
        yield


def shown(name: str) -> str:
    """Return a user's name as figures show it: printable, and at most 80 letters."""
    name = printable(str(name))
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
