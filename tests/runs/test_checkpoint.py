"""Test that checkpoints are complete or absent and that all damage is detected.

It is one file because all of these tests save and restore the same small state.
"""

import gc
import json
import random
import resource
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxlab import make_optimizer
from jaxlab.errors import CheckpointError
from jaxlab.runs import manifest
from jaxlab.runs.checkpoint import (
    FROZEN,
    STATE,
    CheckpointManager,
    flatten_with_names,
    unflatten_like,
)
from jaxlab.runs.manifest import MANIFEST
from jaxlab.training.step import init_state

TRAINABLE = {"body": {"kernel": False}, "head": {"kernel": True, "bias": True}}
ABOUT = {"rows": [{"test_loss": 0.1, "learning_rate": 1e-05}]}


def state_of(step, optimizer="adam", classes=2):
    random = np.random.default_rng(step)
    params = {
        "body": {"kernel": random.standard_normal((3, 4)).astype(np.float32)},
        "head": {
            "kernel": random.standard_normal((4, classes)).astype(np.float32),
            "bias": random.standard_normal(classes).astype(np.float32),
        },
    }
    params["body"]["kernel"][:] = 0.5  # frozen: the same in every checkpoint
    tx = make_optimizer(optimizer, 0.1, trainable=TRAINABLE)
    state = init_state(params, tx)
    gradients = jax.tree.map(jnp.ones_like, params)
    _, opt_state = tx.update(gradients, state.opt_state, state.params)
    return state.replace(opt_state=opt_state, step=jnp.int32(step))


class Place(NamedTuple):
    """The checkpoints of a run, and the lines that were logged for them."""

    checkpoints: CheckpointManager
    said: list

    def save(self, *steps):
        for step in steps:
            self.checkpoints.save(state_of(step), TRAINABLE, ABOUT)
        self.checkpoints.wait()

    def again(self):
        """Open the same folder again, as the next process does."""
        return place_of(self.checkpoints.folder)

    def restored(self, step=None):
        saved = self.again().checkpoints.restore(step)
        return saved.step, unflatten_like(state_of(0), saved)


def place_of(folder, keep=2):
    said = []
    return Place(CheckpointManager(folder, keep, said.append), said)


@pytest.fixture
def place(tmp_path):
    return place_of(tmp_path / "checkpoints")


def same(ours, theirs):
    """Return whether two states have the same names, dtypes and bits."""
    ours, theirs = flatten_with_names(ours), flatten_with_names(theirs)
    assert ours.keys() == theirs.keys()
    return all(
        np.asarray(ours[name]).dtype == np.asarray(theirs[name]).dtype
        and np.asarray(ours[name]).tobytes() == np.asarray(theirs[name]).tobytes()
        for name in ours
    )


def test_what_is_saved_is_restored_bit_for_bit(place):
    place.save(7)
    step, state = place.restored()
    assert step == 7 and same(state, state_of(7))
    assert not same(state, state_of(8))  # the control: another state
    about = place.again().checkpoints.restore().about
    assert {key: about[key] for key in ABOUT} == ABOUT
    assert place.said == ["saved step 7"]


def test_a_step_is_said_to_be_saved_when_it_can_be_restored(place):
    seen = []

    def log(line):
        seen.append((line, place.restored()[0]))

    place.checkpoints.log = log
    place.save(1, 2)
    assert seen == [("saved step 1", 1), ("saved step 2", 2)]


def test_what_is_saved_is_the_state_of_that_moment(place):
    """A save is unaffected when the next step overwrites the memory of the state."""
    state = state_of(3)
    place.checkpoints.save(state, TRAINABLE, ABOUT)
    scribble = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    jax.block_until_ready(scribble(state))
    place.checkpoints.wait()
    assert same(place.restored()[1], state_of(3))


def test_the_last_steps_are_kept_and_frozen_parameters_once(place):
    place.save(1, 2, 3)
    folder = place.checkpoints.folder
    assert {path.name for path in folder.iterdir()} == {FROZEN, "2", "3"}
    assert list(load_file(folder / FROZEN / STATE)) == ["params.body.kernel"]
    assert "params.body.kernel" not in load_file(folder / "3" / STATE)
    again = place.again()
    again.checkpoints.restore()
    before = (folder / FROZEN / MANIFEST).stat().st_mtime_ns
    again.save(4)
    assert (folder / FROZEN / MANIFEST).stat().st_mtime_ns == before
    assert same(again.restored()[1], state_of(4))


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def outcome(place, path):
    """Restore the possibly damaged step 2; return "refused" or "unharmed".

    An error must name the step and the file; a restored state must be the saved one.
    """
    saved_by = place.again()
    try:
        saved = saved_by.checkpoints.restore(2)
    except CheckpointError as error:
        assert str(error).startswith(f"step 2: {path}: "), error
        assert "\n" not in str(error)
        return "refused"
    assert same(unflatten_like(state_of(0), saved), state_of(2))
    assert saved.about["rows"] == ABOUT["rows"]
    return "unharmed"


def test_no_flipped_bit_is_restored(place):
    place.save(1, 2)
    dice = random.Random(0)
    files = files_of(place.checkpoints.folder / "2")
    files += files_of(place.checkpoints.folder / FROZEN)
    outcomes = []
    for _ in range(200):
        path = dice.choice(files)
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        path.write_bytes(flipped)
        outcomes.append(outcome(place, path))
        path.write_bytes(data)
    # One flip is harmless: the e of a number in the manifest may become an E.
    assert outcomes.count("refused") >= 198
    assert outcome(place, None) == "unharmed"


def test_nothing_cut_short_and_nothing_without_a_file_is_restored(place):
    place.save(1, 2)
    dice = random.Random(1)
    files = files_of(place.checkpoints.folder / "2")
    files += files_of(place.checkpoints.folder / FROZEN)
    assert {path.name for path in files} == {STATE, MANIFEST}
    for path in files:
        data = path.read_bytes()
        for length in dice.sample(range(len(data)), 13):
            path.write_bytes(data[:length])
            assert outcome(place, path) == "refused" or data[length:] == b"\n"
        path.unlink()
        assert outcome(place, path) == "refused"
        path.write_bytes(data)
    assert outcome(place, None) == "unharmed"


def test_the_step_before_a_damaged_one_is_used_and_both_are_named(place):
    place.save(1, 2)
    path = place.checkpoints.folder / "2" / STATE
    path.write_bytes(b"")
    again = place.again()
    assert again.checkpoints.restore().step == 1
    (line,) = again.said
    assert line.startswith(f"warning: step 2: {path}: size is 0, expected ")
    assert line.endswith("; this checkpoint is skipped")


def manifest_of(folder, change):
    path = folder / "2" / MANIFEST
    content = json.loads(path.read_text())
    change(content["body"])
    content["sha256"] = manifest.digest(content["body"])
    path.write_text(json.dumps(content))


def moved_outside(folder):
    shutil.move(folder / "2" / STATE, folder.parent / "outside")
    (folder / "2" / STATE).symlink_to(folder.parent / "outside")


BROKEN = {
    "another's number": (
        lambda folder: shutil.copytree(folder / "1", folder / "3"),
        "3: contains step 1",
    ),
    "newer format": (
        lambda folder: manifest_of(folder, lambda body: body.update(format=99)),
        f"manifest.json: has format 99, expected {manifest.FORMAT}",
    ),
    "no manifest": (
        lambda folder: (folder / "2" / MANIFEST).unlink(),
        "manifest.json: No such file",
    ),
    "a link": (moved_outside, f"{STATE}: is a symbolic link"),
    "one file more": (
        lambda folder: (folder / "2" / "more").write_text(""),
        "more: is not in the manifest",
    ),
    "half-deleted": (
        lambda folder: (folder / "2" / STATE).unlink(),
        f"{STATE}: is missing",
    ),
    "of the version before": (
        lambda folder: manifest_of(folder, lambda body: body.update(format=1)),
        f"manifest.json: has format 1, expected {manifest.FORMAT}",
    ),
    "of another run": (
        lambda folder: manifest_of(folder, lambda body: body.update(frozen="0" * 64)),
        "frozen: belongs to another run",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_step_of_this_run_is_said_and_passed_over(place, name):
    place.save(1, 2)
    damage, reason = BROKEN[name]
    damage(place.checkpoints.folder)
    again = place.again()
    saved = again.checkpoints.restore()
    assert saved.step == (2 if name == "another's number" else 1)
    assert reason in again.said[0]


def test_other_names_are_no_steps(place):
    place.save(5)
    for name in ("007", "9.bak", "6.partial", "4.deleted", "1e3", "-8", "８"):
        shutil.copytree(place.checkpoints.folder / "5", place.checkpoints.folder / name)
    assert place.checkpoints.steps() == [5]
    place.checkpoints.recover()
    left = {path.name for path in place.checkpoints.folder.iterdir()}
    assert left == {FROZEN, "5", "007", "9.bak", "1e3", "-8", "８"}


def test_a_damaged_step_is_replaced_when_it_is_reached_again(place):
    place.save(1, 2)
    files_of(place.checkpoints.folder / "2")[0].unlink()
    again = place.again()
    assert again.checkpoints.restore().step == 1
    again.save(2)
    assert place.restored()[0] == 2
    # An intact checkpoint is written again only if its metadata has changed.
    path = place.checkpoints.folder / "2" / MANIFEST
    before = path.stat().st_mtime_ns
    again.save(2)
    assert path.stat().st_mtime_ns == before
    again.checkpoints.save(state_of(2), TRAINABLE, {**ABOUT, "rows": []})
    again.checkpoints.wait()
    assert place.again().checkpoints.restore().about["rows"] == []


def test_what_was_written_to_the_end_is_a_step_and_nothing_else_is(place):
    place.save(1, 2)
    folder = place.checkpoints.folder
    (folder / "2").rename(folder / "2.partial")
    shutil.copytree(folder / "1", folder / "1.partial")
    shutil.copytree(folder / "1", folder / "3.partial")
    (folder / "3.partial" / MANIFEST).unlink()
    (folder / "1").rename(folder / "1.deleted")
    again = place.again()
    again.checkpoints.recover()
    assert {path.name for path in folder.iterdir()} == {FROZEN, "1", "2"}
    assert same(place.restored()[1], state_of(2))


def test_without_any_whole_step_it_is_an_error(place):
    place.save(1)
    with pytest.raises(CheckpointError, match="has no step 9; pass .* its steps: 1$"):
        place.restored(9)
    (place.checkpoints.folder / "1" / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="contains no intact checkpoint") as error:
        place.restored()
    assert error.value.exit_code == 5


@pytest.mark.parametrize(
    "other, reason",
    [
        (dict(optimizer="sgd"), "mu.head.bias is unexpected"),
        (dict(classes=3), r"params.head.bias is float32\[2\], expected float32\[3\]"),
    ],
)
def test_a_step_of_another_network_or_optimiser_is_refused(place, other, reason):
    place.save(1)
    saved = place.again().checkpoints.restore()
    with pytest.raises(CheckpointError, match=reason):
        unflatten_like(state_of(0, **other), saved)


def test_what_is_not_finite_is_not_saved(place):
    place.save(1)
    state = state_of(2)
    state.params["head"]["bias"] = jnp.array([1.0, np.nan], jnp.float32)
    place.checkpoints.save(state, TRAINABLE, ABOUT)
    with pytest.raises(
        CheckpointError, match="params.head.bias is not finite.* is step 1"
    ):
        place.checkpoints.wait()
    assert place.restored()[0] == 1


# Limits of a file's bytes: from 0 to enough for all files but the large arrays.
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(size, marks=() if size == 600 else pytest.mark.slow)
        for size in (0, 20, 150, 600, 4000, 10000)
    ],
)
def test_a_full_disk_is_said_in_one_line_and_leaves_the_last_step(
    place, small_disk, capfd, size
):
    # Made before, because JAX cannot store the programs that make them either.
    states = {step: state_of(step, classes=4000) for step in (1, 2)}

    def save(place, step):
        place.checkpoints.save(states[step], TRAINABLE, ABOUT)
        place.checkpoints.wait()

    save(place, 1)
    small_disk(size)
    with pytest.raises(CheckpointError) as error:
        save(place, 2)
    small_disk(resource.RLIM_INFINITY)
    folder = place.checkpoints.folder
    assert str(error.value) == (
        f"{folder}: step 2 could not be saved: File too large; check the free space; "
        "the latest checkpoint is step 1"
    )
    gc.collect()  # an exception that nobody retrieved would be printed now
    assert capfd.readouterr().err == ""
    assert {path.name for path in folder.iterdir()} == {FROZEN, "1"}
    again = place.again()
    assert again.checkpoints.restore().step == 1
    save(again, 2)
    assert place.again().checkpoints.restore().step == 2


def test_at_the_end_the_newest_step_stays_alone(place):
    place.save(1, 2)
    place.checkpoints.keep_newest()
    folder = place.checkpoints.folder
    assert {path.name for path in folder.iterdir()} == {FROZEN, "2"}
    assert place.restored()[0] == 2


def test_numbers_whose_sum_is_too_large_are_finite(place):
    state = state_of(1)
    state.params["head"]["bias"] = jnp.array([3e38, 3e38], jnp.float32)
    place.checkpoints.save(state, TRAINABLE, ABOUT)
    place.checkpoints.wait()
    assert same(place.restored()[1], state)
