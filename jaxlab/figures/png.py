"""A figure as a PNG file."""

from pathlib import Path

from matplotlib.figure import Figure

from pretrained.disk import atomic_write


def save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all; raises OSError."""
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
