"""Break one line in each part of the project; the quick tests must detect each change.

    python -m tests.stress broken [NUMBER …]

The tests run in a copy of the tree. For each line only the test file named with it
runs, and of its tests only the quick ones (`-m "not slow"`).
It is one file because most of it is the table of lines.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from tests.stress import publish

ROOT = Path(__file__).parents[2]


class Line(NamedTuple):
    """A text that occurs once in a file, a wrong text, and tests that must fail."""

    file: str
    right: str
    wrong: str
    tests: str


LINES = [
    Line(
        "jaxlab/models/alexnet.py",
        "self.fc7(self.drop7(x, train=mode.train))",
        "self.fc7(self.drop7(x, train=False))",
        "training/test_parity.py",
    ),
    Line(
        "jaxlab/models/layers.py",
        "unbiased = var * (count / (count - 1))",
        "unbiased = var",
        "models/test_layers.py",
    ),
    Line(
        "jaxlab/models/ops.py",
        "larger = (other > largest) | jnp.isnan(other)",
        "larger = (other >= largest) | jnp.isnan(other)",
        "models/test_ops.py",
    ),
    Line(
        "jaxlab/models/ops.py",
        "x.shape[1:3]) < math.prod(kernel.shape[:2]):",
        "x.shape[1:3]) < 0:",
        "models/test_ops.py",
    ),
    Line(
        "jaxlab/models/winograd.py",
        "return y[:, :height, :width]",
        "return y[:, -height:, -width:]",
        "models/test_ops.py",
    ),
    Line(
        "jaxlab/models/mlp.py",
        "between = i < len(self.features)",
        "between = i <= len(self.features)",
        "models/test_mlp.py",
    ),
    Line(
        "jaxlab/data/preprocess.py",
        "total = jnp.int32(1 << (_FRACTION_BITS - 1))",
        "total = jnp.int32(0)",
        "data/test_preprocess.py",
    ),
    Line(
        "jaxlab/training/optim.py",
        "return learning_rate * gamma ** (step // period)",
        "return learning_rate * gamma ** ((step + 1) // period)",
        "training/test_optim.py",
    ),
    Line(
        "jaxlab/training/step.py",
        'rngs={"dropout": jax.random.fold_in(key, state.step)},',
        'rngs={"dropout": key},',
        "training/test_step.py",
    ),
    Line(
        "jaxlab/models/architecture.py",
        "return frozen[:first]",
        "return frozen",
        "models/test_architecture.py",
    ),
    Line(
        "jaxlab/models/chain.py",
        "frozen=i < thawed",
        "frozen=i <= thawed",
        "models/test_chain.py",
    ),
    Line(
        "jaxlab/training/inputs.py",
        "if any(jax.tree.leaves(trainable[name]))",
        "if all(jax.tree.leaves(trainable[name]))",
        "training/test_inputs.py",
    ),
    Line(
        "jaxlab/training/features.py",
        '"variables": _sha256(variables),',
        '"variables": "",',
        "training/test_features.py",
    ),
    Line(
        "jaxlab/training/feature_store.py",
        "if digest.hexdigest() != expected:",
        "if len(digest.hexdigest()) != len(expected):",
        "training/test_feature_store.py",
    ),
    Line(
        "jaxlab/training/fit.py",
        "rows, step_metrics = list(progress.rows), list(progress.step_metrics)",
        "rows, step_metrics = list(progress.rows), []",
        "runs/test_stop.py",
    ),
    Line(
        "jaxlab/runs/checkpoint.py",
        "np.copyto(copy, leaf)",
        "copy[...] = 0",
        "runs/test_checkpoint.py",
    ),
    Line(
        "jaxlab/runs/manifest.py",
        "if digest(body) != sha256:",
        "if not sha256:",
        "runs/test_checkpoint.py",
    ),
    Line(
        "jaxlab/runs/record.py",
        "if self.sha256 != data.fingerprint():",
        "if not self.sha256:",
        "runs/test_resume.py",
    ),
    Line(
        "jaxlab/runs/folder.py",
        "is_lab = not resume and is_of_jaxlab(folder / RESULTS)",
        "is_lab = is_of_jaxlab(folder / RESULTS)",
        "runs/test_resume.py",
    ),
    Line(
        "jaxlab/runs/record.py",
        "return rows if ended else []",
        "return rows",
        "runs/test_record.py",
    ),
    Line(
        "jaxlab/runs/writer.py",
        "except Exception as error:",
        "except OSError as error:",
        "runs/test_full.py",
    ),
    Line(
        "pretrained/disk.py",
        "to_delete = path.with_name(path.name + DELETED)",
        "to_delete = path",
        "pretrained/test_disk.py",
    ),
    Line(
        "jaxlab/training/job.py",
        "counts.sum() / (len(present) * present)",
        "counts.sum() / (len(counts) * present)",
        "data/test_image_folder.py",
    ),
    Line(
        "jaxlab/training/initial_weights.py",
        "order = [then.index(name) for name in now]",
        "order = [now.index(name) for name in then]",
        "training/test_initial_weights.py",
    ),
    Line(
        "jaxlab/training/initial_weights.py",
        "variables = _fresh_program(model, fresh)(key)",
        "key = jax.random.fold_in(key, len(loaded))\n"
        "    variables = _fresh_program(model, fresh)(key)",
        "training/test_initial_weights.py",
    ),
    Line(
        "jaxlab/predict.py",
        'order = np.argsort(-probabilities, kind="stable")[:top]',
        'order = np.argsort(probabilities, kind="stable")[:top]',
        "test_predict.py",
    ),
    Line(
        "jaxlab/verify.py",
        "if missed:",
        "if len(missed) > len(comparisons):",
        "test_verify.py",
    ),
    Line(
        "jaxlab/overfit.py",
        'point[f"{name}_loss"] = metrics.loss / metrics.count',
        'point[f"{name}_loss"] = metrics.loss / count',
        "test_overfit.py",
    ),
    Line(
        "jaxlab/cli/terminal.py",
        "return _report(error, str(error), error.exit_code)",
        "return _report(error, str(error), 1)",
        "cli/test_terminal.py",
    ),
    Line(
        "jaxlab/cli/signals.py",
        "signal.signal(each, _next_handlers.get(each, signal.SIG_DFL))",
        "pass",
        "cli/test_signals.py",
    ),
    Line(
        "jaxlab/figures/confusion.py",
        "np.add.at(matrix, (labels, predictions), 1)",
        "np.add.at(matrix, (predictions, labels), 1)",
        "figures/test_confusion.py",
    ),
    Line(
        "jaxlab/data/selection.py",
        'return stratified_split(labels["train"][rest], fraction, seed, together)',
        'return ~stratified_split(labels["train"][rest], fraction, seed, together)',
        "data/test_image_folder.py",
    ),
    Line(
        "jaxlab/data/idx.py",
        "if held != header + expected:",
        "if held < header + expected:",
        "data/test_idx.py",
    ),
    Line(
        "jaxlab/data/mnist.py",
        "if sha256(contents[file]) != about.content",
        "if not about.content",
        "data/test_idx.py",
    ),
    Line(
        "jaxlab/data/files.py",
        "for place, folders, names in os.walk(folder, onerror=report):",
        "for place, folders, names in os.walk(folder):",
        "data/test_files.py",
    ),
    Line(
        "jaxlab/data/duplicates.py",
        "near = (best > least) & ((differences[0] * differences[1]).sum(1) > least)",
        "near = best > least + 1",
        "data/test_duplicates.py",
    ),
    Line(
        "jaxlab/data/groups.py",
        "texts = [m and m[1 if m.re.groups else 0] for m in matches]",
        "texts = [m and m[0] for m in matches]",
        "data/test_groups.py",
    ),
    Line(
        "jaxlab/data/pictures.py",
        "return image if method is None else image.transpose(method)",
        "return image",
        "data/test_pictures.py",
    ),
    Line(
        "jaxlab/data/tfds.py",
        "if found != expected:",
        "if found > expected:",
        "data/test_tfds.py",
    ),
    Line(
        "pretrained/tables/row.py",
        "weight = weight.reshape(-1, channels, height, width)  # [out, C, H, W]",
        "weight = weight.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)",
        "pretrained/test_layout.py",
    ),
    Line(
        "pretrained/layout.py",
        'moved.astype(np.int32 if way == "to_flax" else np.int64)',
        "moved.astype(np.int64)",
        "pretrained/test_layout.py",
    ),
    Line(
        "pretrained/download.py",
        "if _is_published(found := _sha256(file), source, path):",
        "if found := _sha256(file):",
        "pretrained/test_download.py",
    ),
    Line(
        "pretrained/files.py",
        "if not np.isfinite(array).all():",
        "if np.isnan(array).all():",
        "pretrained/test_files.py",
    ),
    Line(
        "jaxlab/metrics.py",
        'row["validation_loss"] <= best["validation_loss"]',
        'row["validation_loss"] < best["validation_loss"]',
        "test_metrics.py",
    ),
    Line(
        "jaxlab/training/fit.py",
        "return best_of_all, rows, predictions",
        "return state, rows, predictions",
        "runs/test_validation.py",
    ),
    Line(
        "jaxlab/data/layout.py",
        "twice = [names for names in by_split.values() if len(names) > 1]",
        "twice = [names for names in by_split.values() if len(names) > 2]",
        "data/test_layout.py",
    ),
    Line(
        "jaxlab/data/pictures.py",
        "grey[values == transparent * most // key] = 255",
        "grey[values == transparent] = 255",
        "data/test_pixels.py",
    ),
    Line(
        "jaxlab/compare.py",
        "chosen = min(losses, key=lambda rate: losses[rate])",
        "chosen = max(losses, key=lambda rate: losses[rate])",
        "test_compare.py",
    ),
    Line(
        "jaxlab/verdict.py",
        'and last["train_loss"] < means["train_loss"][at]',
        'and last["train_loss"] > means["train_loss"][at]',
        "test_verdict.py",
    ),
    Line(
        "jaxlab/models/batch_norm.py",
        "dvar = (2 * dvar - scale",
        "dvar = (dvar - scale",
        "models/test_batch_norm.py",
    ),
    Line(
        "jaxlab/models/depthwise.py",
        "dy * kernel[i, j], margins",
        "dy * kernel[j, i], margins",
        "models/test_ops.py",
    ),
    Line(
        "jaxlab/models/ops.py",
        "return dy @ kernel.T, x",
        "return 2 * dy @ kernel.T, x",
        "models/test_ops.py",
    ),
    Line(
        "jaxlab/config.py",
        "is_head_alone = trained == 1",
        "is_head_alone = trained == 2",
        "test_config.py",
    ),
]


def main(argv: list[str]) -> dict[str, Any]:
    """Break the lines, print and return the result; raise AssertionError for a miss."""
    numbers = [int(word) for word in argv] or range(1, len(LINES) + 1)
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        shutil.copytree(ROOT, tree, ignore=left_out)
        shared = ROOT.parent / "shared"
        if shared.exists():  # data that some tests read
            Path(folder, "shared").symlink_to(shared)
        for number in numbers:
            noticed = notices(tree, LINES[number - 1])
            print(f"{number:>3}  {LINES[number - 1].file:<28} {noticed}", flush=True)
            missed += [] if noticed else [number]
    assert not missed, f"the quick tests do not detect the broken lines {missed}"
    return publish({"name": "broken", "noticed": len(numbers), "of": len(LINES)})


def left_out(folder: str, names: list[str]) -> list[str]:
    """Return the names in a folder that are not copied, because no test reads them."""
    at_top = (".git", ".venv", "runs", "build") if Path(folder) == ROOT else ()
    return [name for name in names if name in at_top or name.endswith("_cache")]


def notices(tree: Path, line: Line) -> str:
    """Return a test that fails with the wrong text and passes with the right one.

    Returns "" if all tests pass with the wrong text.
    """
    path = tree / line.file
    good = path.read_text()
    assert good.count(line.right) == 1, f"{line.file}: {line.right}"
    path.write_text(good.replace(line.right, line.wrong))
    try:
        failed = first_failure(tree, f"tests/{line.tests}")
    finally:
        path.write_text(good)
    assert not failed or not first_failure(tree, failed), f"{failed} always fails"
    return failed


def first_failure(tree: Path, tests: str) -> str:
    """Return the first test that fails, or "" if all pass."""
    pytest = [sys.executable, "-m", "pytest", "-m", "not slow", "-x", "-q", "-n0"]
    process = subprocess.run(
        [*pytest, tests],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "300"},
        capture_output=True,
        text=True,
    )
    failed = re.search(r"^FAILED (.*?)( - |$)", process.stdout, re.MULTILINE)
    assert process.returncode == (1 if failed else 0), process.stdout
    return failed[1] if failed else ""
