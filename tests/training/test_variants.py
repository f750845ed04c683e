"""Test the names of the lab's variants: any combination, in any order, with spaces."""

import itertools

import pytest

from jaxlab.errors import UsageError
from jaxlab.training.variants import CURES, VARIANTS, Variant, variants_of


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("all", list(VARIANTS)),
        ("baseline", ["baseline"]),
        ("l2, dropout", ["l2", "dropout"]),
        ("l2+dropout,dropout + l2", ["dropout+l2"]),
        (" step-decay+batchnorm ", ["batchnorm+step-decay"]),
        ("l1+l2+dropout+batchnorm+step-decay", ["batchnorm+dropout+l2+l1+step-decay"]),
        ("dropout+l2, all", ["dropout+l2", *VARIANTS]),
        ("l1,l1", ["l1"]),
    ],
)
def test_a_variant_has_one_name_however_it_is_written(text, names):
    assert list(variants_of(text)) == names


def test_every_combination_is_another_variant_with_a_name_of_its_own():
    found = {}
    for count in range(1, len(CURES) + 1):
        for words in itertools.combinations(reversed(CURES), count):
            found |= variants_of("+".join(words))
    assert len(found) == len(set(found.values())) == 31
    for name, variant in found.items():
        used = {cure for cure, field in CURES.items() if getattr(variant, field)}
        assert used == set(name.split("+"))
    assert variants_of("baseline") == {"baseline": Variant()}


def test_the_eight_have_the_names_and_cures_that_they_are_asked_by():
    for name, variant in VARIANTS.items():
        assert variants_of(name) == {name: variant}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("drpout", "unknown variant 'drpout'; did you mean dropout?"),
        ("l2+drpout", "unknown cure 'drpout' in 'l2+drpout'; did you mean dropout?"),
        ("batch_norm", "unknown variant 'batch_norm'; did you mean batchnorm?"),
        ("bn+l2", "unknown cure 'bn' in 'bn+l2'; did you mean batchnorm?"),
        ("weight-decay", "unknown variant 'weight-decay'; did you mean l2?"),
        ("none", "unknown variant 'none'; did you mean baseline?"),
        ("", "unknown variant ''; see --help"),
        ("l2,", "unknown variant ''; see --help"),
        ("l2+", "unknown cure '' in 'l2+'; see --help"),
        (
            "baseline+l2",
            "'baseline+l2' is contradictory: baseline has no cure; did you mean l2?",
        ),
        ("all+baseline", "'all+baseline' is contradictory: all stands for eight"),
        ("l2+l1+l2", "'l2+l1+l2' names l2 twice; did you mean l2+l1?"),
    ],
)
def test_a_wrong_name_is_one_line_with_a_guess(text, message):
    with pytest.raises(UsageError) as raised:
        variants_of(text)
    assert message in raised.value.text
    assert raised.value.text.startswith("--variants: ")
    assert "\n" not in raised.value.text
