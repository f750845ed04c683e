"""Compare every network with torchvision's: outputs, conversion, names, training.

    python -m tests.stress families [NAME …]

For each network, with random weights, running statistics and counters and 7 classes:
the logits and the output of every module at two image sizes, in float64 and float32;
the names, order and shapes of `state_dict()`; the conversion there and back, bit for
bit; and the strict load into torchvision's network. A line says the largest errors.
"""

import argparse
import sys
import time
from typing import Any

import numpy as np

from jaxlab import verify
from jaxlab.models.architecture import ARCHITECTURES, FINE_TUNED
from pretrained import to_state_dict, to_variables
from pretrained.layout import recognised
from pretrained.tables import TABLES

CLASSES = 7
SIZES = ((224, 224), (97, 131))


def main(argv: list[str]) -> int:
    """Compare the named networks, by default all; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FINE_TUNED))
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(FINE_TUNED):
        parser.error(
            f"{', '.join(sorted(unknown))}: not one of {', '.join(FINE_TUNED)}"
        )
    failed = []
    for name in options.names or FINE_TUNED:
        started = time.perf_counter()
        oracle = torchvision_of(name)
        convert_there_and_back(name, oracle)
        rows = outputs(name, oracle)
        missed = [row for row in rows if not row.passed]
        failed += [name] if missed else []
        errors = " ".join(f"{part} {worst:.1e}" for part, worst in worst_of(rows))
        verdict = f"{len(missed)} of {len(rows)} FAIL" if missed else "equal"
        seconds = time.perf_counter() - started
        print(f"{name:<18}{errors}  {verdict}  {seconds:.0f} s", flush=True)
        for row in missed[:5]:
            print(f"  {row}")
    print(f"{len(options.names or FINE_TUNED) - len(failed)} equal, {len(failed)} not")
    return 1 if failed else 0


def torchvision_of(name: str, num_classes: int = CLASSES) -> Any:
    """Return torchvision's network with random weights, statistics and counters."""
    torch, torchvision = verify.import_torch()
    model = torchvision.models.get_model(name, num_classes=num_classes)
    return verify.randomised(model, torch).eval()


def convert_there_and_back(name: str, oracle: Any) -> None:
    """Assert the names, the order and the shapes of the table, and both conversions."""
    state_dict = {key: value.numpy() for key, value in oracle.state_dict().items()}
    variables = to_variables(state_dict, name)
    back = to_state_dict(variables, name)
    assert list(back) == list(state_dict) == [row.torch for row in TABLES[name]]
    for key, array in state_dict.items():
        assert back[key].dtype == array.dtype and back[key].shape == array.shape, key
        assert back[key].tobytes() == array.tobytes(), key
    shapes = {key: array.shape for key, array in state_dict.items()}
    assert recognised(shapes) == [name]
    torch, torchvision = verify.import_torch()
    with torch.device("meta"):  # its own weights are not needed
        loaded = torchvision.models.get_model(name, num_classes=CLASSES)
    tensors = {key: torch.from_numpy(array) for key, array in back.items()}
    loaded.load_state_dict(tensors, strict=True, assign=True)
    counters = [row for row in TABLES[name] if row.kind == "count"]
    assert all(int(state_dict[row.torch]) > 0 for row in counters)


def outputs(
    name: str,
    oracle: Any,
    sizes: Any = SIZES,
    precisions: Any = ("float64", "float32"),
) -> list[verify.Comparison]:
    """Return the comparisons of every module's output and of the logits."""
    state_dict = {key: value.numpy() for key, value in oracle.state_dict().items()}
    return verify.compare_modules(
        TABLES[name],
        ARCHITECTURES[name].build(CLASSES),
        to_variables(state_dict, name),
        oracle,
        sizes=sizes,
        precisions=precisions,
    )


def worst_of(rows: list[verify.Comparison]) -> list[tuple[str, float]]:
    """Return the largest error of the logits and of the modules, by precision."""
    found = []
    for precision in dict.fromkeys(row.precision for row in rows):
        for part, is_logits in (("logits", True), ("modules", False)):
            errors = [
                row.relative_error
                for row in rows
                if row.precision == precision and (row.layer == "logits") is is_logits
            ]
            found.append((f"{precision} {part}", float(np.max(errors))))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
