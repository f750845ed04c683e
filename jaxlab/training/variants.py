"""The variants of `jaxlab.overfit`: any combination of cures, and their names.

It does not import JAX, so that a mistyped name is answered at once.
"""

from typing import NamedTuple

from jaxlab.errors import UsageError, did_you_mean, shown


class Variant(NamedTuple):
    """The cures that are used. Their strengths are flags, equal for all variants."""

    l2: bool = False
    l1: bool = False
    step_decay: bool = False
    dropout: bool = False
    batch_norm: bool = False


BASELINE, ALL = "baseline", "all"
# Each cure and its field of Variant, in the order of a combination's name.
CURES = {
    "batchnorm": "batch_norm",
    "dropout": "dropout",
    "l2": "l2",
    "l1": "l1",
    "step-decay": "step_decay",
}
VARIANTS = {
    BASELINE: Variant(),
    "l2": Variant(l2=True),
    "l1": Variant(l1=True),
    "step-decay": Variant(step_decay=True),
    "dropout": Variant(dropout=True),
    "batchnorm": Variant(batch_norm=True),
    "dropout+step-decay": Variant(dropout=True, step_decay=True),
    "batchnorm+step-decay": Variant(batch_norm=True, step_decay=True),
}
_MEANT = (
    dict.fromkeys(("none", "no-cure", "plain"), BASELINE)
    | dict.fromkeys(("bn", "batch-normalisation", "batch-normalization"), "batchnorm")
    | dict.fromkeys(("weight-decay", "ridge"), "l2")
    | {"lasso": "l1"}
    | dict.fromkeys(("step", "steplr", "step-lr", "lr-decay", "decay"), "step-decay")
)


def variants_of(text: str) -> dict[str, Variant]:
    """Return the variants that `--variants` names, in its order and each once.

    `text` is names separated by commas: "baseline", cures joined by "+" in any order,
    or "all", which stands for VARIANTS. The keys are the names in the order of CURES.
    Raises UsageError for an unknown or contradictory name, with a guess.

    >>> list(variants_of("step-decay + dropout, l2"))
    ['dropout+step-decay', 'l2']
    """
    chosen: dict[str, Variant] = {}
    for item in text.split(","):
        words = [word.strip() for word in item.split("+")]
        if words == [ALL]:
            chosen |= VARIANTS
        elif words == [BASELINE]:
            chosen[BASELINE] = Variant()
        else:
            _check(words)
            cures = [cure for cure in CURES if cure in words]
            fields = {CURES[cure]: True for cure in cures}
            chosen["+".join(cures)] = Variant(**fields)
    return chosen


def _check(words: list[str]) -> None:
    """Raise UsageError unless the words are cures, each at most once."""
    whole = "+".join(words)
    for i, word in enumerate(words):
        if len(words) > 1 and word in (BASELINE, ALL):
            others = [one for one in words if one in CURES]
            what = "has no cure" if word == BASELINE else "stands for eight variants"
            guess = f"; did you mean {'+'.join(others)}?" if others else "; see --help"
            raise UsageError(
                f"--variants: {shown(whole)} is contradictory: {word} {what}{guess}"
            )
        if word not in CURES:
            near = did_you_mean(word, [*CURES, BASELINE, ALL], _MEANT)
            kind, where = "variant", ""
            if len(words) > 1:
                kind, where = "cure", f" in {shown(whole)}"
            raise UsageError(f"--variants: unknown {kind} {shown(word)}{where}{near}")
        if word in words[:i]:
            once = "+".join(dict.fromkeys(words))
            raise UsageError(
                f"--variants: {shown(whole)} names {word} twice; did you mean {once}?"
            )
