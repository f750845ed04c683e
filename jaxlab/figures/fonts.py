"""Fonts for the letters of a figure, and the space that a text takes in them.

matplotlib's own font has no Chinese letters, for example.
"""

import functools
import re
import warnings

from matplotlib import font_manager
from matplotlib.textpath import text_to_path

OWN = "DejaVu Sans"  # comes with matplotlib
MISSING = "Glyph .* missing from font"  # the warning of matplotlib, as a pattern
_POINTS = 72  # in an inch
# A word that a line may begin with: each Chinese or Japanese letter is one.
_WORDS = re.compile(r"[\u2e80-\uffef]|[^ _/\u2e80-\uffef-]*[ _/-]*")


def fonts_for(text: str) -> tuple[list[str], str]:
    """Return names of installed fonts that have the letters, and the letters in none.

    The first one is matplotlib's own. The others have the letters that it lacks: always
    the font that has most of those left, so that a word is drawn in one font.
    """
    fonts = [OWN]
    missing = {letter for letter in text if not letter.isspace()}
    missing = {letter for letter in missing if ord(letter) not in _letters(OWN)}
    names = sorted(_files()) if missing else []
    while missing:
        found = {
            name: {c for c in missing if ord(c) in _letters(name)} for name in names
        }
        best = max(
            names, key=lambda name: (len(found[name]), "Sans" in name), default=""
        )
        if not best or not found[best]:
            break
        fonts.append(best)
        missing -= found[best]
    return fonts, "".join(sorted(missing))


def width(text: str, size: float, weight: str = "normal") -> float:
    """Return the width of one line of text in inches, for a font size in points."""
    return size * sum(_advance(letter, weight) for letter in text)


@functools.lru_cache(maxsize=10_000)
def _advance(letter: str, weight: str) -> float:
    """Return the width of a letter within a word, in inches for a size of one point."""
    family = fonts_for(letter)[0]
    font = font_manager.FontProperties(family=family, size=100, weight=weight)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", MISSING)
        whole, without = (
            text_to_path.get_text_width_height_descent(text, font, False)[0]
            for text in (f"H{letter}H", "HH")
        )
    return (whole - without) / (100 * _POINTS)


def longest_word(text: str, size: float) -> float:
    """Return the width in inches that lines must have for no word to be broken."""
    return max((width(word.rstrip(), size) for word in _WORDS.findall(text)), default=0)


def wrapped(text: str, size: float, most: float, weight: str = "normal") -> list[str]:
    """Return a text as lines of at most `most` inches, broken between words.

    Only a word that is longer than a line is broken between any two letters.
    """

    def fits(line: str) -> bool:
        return width(line.rstrip(), size, weight) <= most

    lines = [""]
    for word in _WORDS.findall(text):
        if fits(lines[-1] + word):
            lines[-1] += word
            continue
        for part in [word] if fits(word) else word:
            if part is word or not fits(lines[-1] + part):
                lines.append("")
            lines[-1] += part
    return [line.rstrip() for line in lines if line.strip()]


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
