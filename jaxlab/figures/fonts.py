"""Fonts for the letters of a figure: matplotlib's own has no Chinese, for example."""

import functools

from matplotlib import font_manager

OWN = "DejaVu Sans"  # comes with matplotlib


def fonts_for(text: str) -> tuple[list[str], str]:
    """Return names of installed fonts that have the letters, and the letters in none.

    The first one is matplotlib's own; the others have the letters that it lacks.
    """
    fonts = [OWN]
    missing = {letter for letter in text if not letter.isspace()}
    missing = {letter for letter in missing if ord(letter) not in _letters(OWN)}
    for name in sorted(_files()) if missing else ():
        found = {letter for letter in missing if ord(letter) in _letters(name)}
        if found:
            fonts.append(name)
            missing -= found
        if not missing:
            break
    return fonts, "".join(sorted(missing))


def _files() -> dict[str, str]:
    """Return the upright installed fonts of usual weight, with a file of each."""
    fonts = font_manager.fontManager.ttflist
    return {
        font.name: font.fname
        for font in fonts
        if font.style == "normal"
        and font.weight in (400, "normal", "regular")
        # matplotlib's font of boxes has a box for every letter.
        and not font.name.startswith("Last Resort")
    }


@functools.cache
def _letters(name: str) -> frozenset[int]:
    """Return the code points that a font has; none if its file cannot be read."""
    try:
        return frozenset(font_manager.get_font(_files()[name]).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()
