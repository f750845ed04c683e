"""python -m jaxlab.verify: certify that weights give torchvision's results.

The same weights are loaded into torchvision's network by torch, and into this project's
network by its own reader and conversion. The outputs of every module with parameters
and the logits are compared on random images of several sizes, in float32 and float64.

It is one file because a certificate is read from its inputs to its table.
"""

import importlib
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxlab import environment, runtime
from jaxlab.cli import flags, terminal
from jaxlab.cli.flags import flag
from jaxlab.errors import InputError, JaxlabError, UsageError
from jaxlab.models.architecture import ARCHITECTURES, DEFAULT, FINE_TUNED
from jaxlab.runs import folder as run_folder
from pretrained import stages
from pretrained.errors import printable
from pretrained.layout import current_names
from pretrained.tables import TABLES, Row, head

# Upper bounds of the relative error. It is not zero, because the two sides sum the same
# products in different orders.
BARS = {"float32": 1e-5, "float64": 1e-12}
SIZES = ((63, 63), (192, 256), (224, 224))
IMAGES = 2  # of each size


@dataclass(frozen=True)
class Config:
    """The arguments of the command and their defaults."""

    weights: str | None = flag(
        None,
        "a .pth or .safetensors file, the folder of a run, published weights such as "
        "imagenet, imagenet-conv, or random: random weights and statistics",
        group="weights",
        positional=True,
        metavar="[FILE|RUN]",
        default_help="random with --model, else imagenet-conv",
    )
    model: str | None = flag(
        None,
        "network, one of those of jaxlab.finetune --help, such as resnet50",
        metavar="NAME",
        choices=FINE_TUNED,
        default_help=f"that of the file, else {DEFAULT}",
        synonyms=("arch", "architecture", "network"),
    )
    against: str | None = flag(
        None,
        "file for torch to load: the original that WEIGHTS was converted from",
        metavar="FILE",
        default_help="WEIGHTS itself",
    )
    json: bool = flag(
        False, "print one JSON object instead of the table", group="output"
    )
    offline: bool = flag(False, "open no network connection", group="run")
    debug: bool = flag(False, "show tracebacks")

    def __post_init__(self):
        """Check every argument."""
        flags.validate(self)


class Comparison(NamedTuple):
    """The difference between one of our network's outputs and torch's.

    `layer` is the path of a module, such as "layer1/0/conv1", or "logits".
    `max_difference` is max |ours - torch|, `relative_error` is ‖ours - torch‖ /
    ‖torch‖. `passed` means that the latter is at most BARS[precision] and, for the
    logits, that the top-1 classes agree.
    """

    precision: str
    size: str
    layer: str
    shape: tuple[int, ...]
    max_difference: float
    relative_error: float
    passed: bool


def main(argv: Sequence[str] | None = None) -> None:
    """Compare both sides and print the certificate.

    Raises JaxlabError, exit code 1, if a comparison fails.
    """
    given = flags.parse(Config, argv, prog="python -m jaxlab.verify", about=__doc__)
    config = Config(**given)
    stages.begin("starting JAX")
    device = runtime.set_up()
    stages.begin("starting torch")
    torch, torchvision = import_torch()
    stages.begin("reading the weights")
    network, variables, state_dict, facts = _both_sides(config, torch, torchvision)
    stages.begin("comparing")
    comparisons = compare(network, variables, state_dict)
    missed = [row for row in comparisons if not row.passed]
    certificate = {
        "verdict": "equal" if not missed else "not equal",
        "network": network,
        **facts,
        "compared": f"{IMAGES} random images of each size",
        "bars": BARS,
        "device": device,
        "matmul_precision": "highest",
        "versions": {
            **environment.versions(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    }
    if config.json:
        rows = [row._asdict() for row in comparisons]
        print(json.dumps({**certificate, "comparisons": rows}))
    else:
        print(_table(comparisons, certificate))
    if missed:
        worst = max(missed, key=lambda row: row.relative_error / BARS[row.precision])
        raise JaxlabError(
            f"{facts['weights']}: not equal to torchvision's: {len(missed)} of "
            f"{len(comparisons)} comparisons fail, {missed[0].layer} first and "
            f"{worst.layer} worst (relative error {worst.relative_error:.1e}); do not "
            "use these weights"
        )


def import_torch() -> tuple[Any, Any]:
    """Return the modules torch and torchvision, which no other module here imports.

    Raises InputError, with the command that installs it, if one is not installed.
    """
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise _not_installed("torch") from error
    try:
        return torch, importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        raise _not_installed("torchvision") from error
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    # torch cannot load torchvision's compiled operators if the two come from different
    # builds. The import then fails, because torchvision registers implementations of
    # two of these operators. Defining their schemas is enough: no network here uses
    # them.
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    global _schemas
    _schemas = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _schemas.define(
            f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
    return torch, importlib.import_module("torchvision")


_schemas: Any = None  # torch removes the schemas when this is garbage-collected


def _not_installed(package: str) -> InputError:
    return InputError(
        f"{package}: not installed, but verify needs it for the comparison; "
        "run pip install 'torch==2.13.0' 'torchvision==0.28.0'"
    )


def _both_sides(
    config: Config, torch: Any, torchvision: Any
) -> tuple[str, Any, dict[str, Any], dict[str, Any]]:
    """Return the network's name, our variables, torch's state_dict, and the facts."""
    weights = config.weights
    if weights is None:
        weights = "imagenet-conv" if config.model is None else "random"
    if weights not in ("imagenet-conv", "random"):
        return _file_sides(weights, config, torch)
    if config.against:
        raise UsageError(f"--against: {weights} is not a file; pass a file as WEIGHTS")
    network = config.model or DEFAULT
    if weights == "imagenet-conv":
        return _embedded_sides(network, torch, torchvision)
    return _random_sides(network, torch, torchvision)


def _random_sides(
    network: str, torch: Any, torchvision: Any
) -> tuple[str, Any, dict[str, Any], dict[str, Any]]:
    """Return both sides of random weights, running statistics and counters."""
    from pretrained import to_variables

    model = getattr(torchvision.models, network)()
    state_dict = randomised(model, torch).state_dict()
    facts = {
        "weights": "random, with random running statistics and counters",
        "classes": 1000,
        "proves": _ARCHITECTURE,
    }
    return network, to_variables(state_dict, network), state_dict, facts


def randomised(model: Any, torch: Any) -> Any:
    """Return torch's network with noise in all it holds, so that no two are equal.

    Initial biases, scales and statistics are 0 or 1, and could be exchanged unnoticed.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for name, tensor in model.state_dict().items():
            if not tensor.dtype.is_floating_point:
                tensor.fill_(int(torch.randint(1, 1000, ())))
            elif name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand_like(tensor))
            else:
                noise = torch.randn_like(tensor)
                tensor.mul_(1 + 0.1 * noise).add_(noise, alpha=0.01)
    return model


_ARCHITECTURE = "that the architecture and the conversion equal torchvision's"


def _embedded_sides(
    network: str, torch: Any, torchvision: Any
) -> tuple[str, Any, dict[str, Any], dict[str, Any]]:
    """Return both sides of the embedded convolutions, with other layers of torch's."""
    from pretrained import embedded, to_flax, to_torch

    torch.manual_seed(0)
    convolutions, source = embedded.imagenet_conv(network), embedded.SOURCES[network]
    state_dict = getattr(torchvision.models, network)().state_dict()
    params = {**to_flax(state_dict, TABLES[network]), **convolutions}
    state_dict = {
        name: torch.from_numpy(array)
        for name, array in to_torch(params, TABLES[network]).items()
    }
    facts = {
        "weights": f"{source.title}; all other layers random",
        "sha256": source.sha256,
        "classes": 1000,
        "proves": _ARCHITECTURE,
    }
    return network, {"params": params}, state_dict, facts


def _file_sides(
    name: str, config: Config, torch: Any
) -> tuple[str, Any, dict[str, Any], dict[str, Any]]:
    """Return both sides of a file: as we read it, and as torch loads its original."""
    from pretrained.files import read_weights

    ours = _content(name, config)
    weights = read_weights(ours, config.model)
    facts = {
        "weights": ours.name,
        "sha256": weights.sha256,
        "published": weights.source.title if weights.source else None,
        "classes": _num_classes(weights),
    }
    theirs, original = ours, weights
    proves = "that this file is read and converted without loss; not who trained it"
    if config.against:
        theirs = _content(config.against, config)
        original = read_weights(theirs, weights.network)
        facts |= {"against": theirs.name, "against_sha256": original.sha256}
        proves = (
            "that WEIGHTS are the weights of the file against, converted without loss"
        )
    facts["proves"] = proves
    if original.names == "flax":
        raise UsageError(
            f"{theirs.name}: torch cannot load Flax's names; pass its original with "
            "--against FILE"
        )
    if _num_classes(original) != _num_classes(weights):
        raise InputError(
            f"--against: {theirs.name} has {_num_classes(original)} classes, "
            f"{ours.name} has {_num_classes(weights)}; pass the file that WEIGHTS was "
            "converted from"
        )
    state_dict = _torch_load(torch, theirs, original)
    return weights.network, weights.variables, state_dict, facts


def _content(name: str, config: Config) -> io.BytesIO:
    """Return the bytes of a file, a run's model or published weights, with its path.

    They are read once: the same bytes are hashed and parsed by both sides.
    """
    from pretrained.download import open_published
    from pretrained.sources import PUBLISHED, published
    from pretrained.torchfile import open_weights

    source: BinaryIO | Path
    if name in PUBLISHED:
        found = published(config.model or DEFAULT, name)
        source = open_published(found, offline=config.offline)
    else:
        source = Path(name)
        if source.is_dir():
            source = source / run_folder.MODEL
            if not source.exists():
                raise InputError(
                    f"{name}: contains no {run_folder.MODEL}; pass a finished run or a "
                    "weights file"
                )
    with open_weights(source) as (file, path):
        buffer = io.BytesIO(file.read())
        buffer.name = path
        return buffer


def _torch_load(torch: Any, file: io.BytesIO, weights: Any) -> dict[str, Any]:
    """Return the state_dict that torch itself loads from bytes we have read before."""
    if weights.is_safetensors:
        return importlib.import_module("safetensors.torch").load(file.getvalue())
    file.seek(0)
    # Our own reader, which executes nothing, has accepted these bytes.
    return torch.load(file, weights_only=True)


def _num_classes(weights: Any) -> int:
    return weights.params[head(TABLES[weights.network])]["bias"].size


def compare(
    network: str, variables: Any, state_dict: Mapping[str, Any]
) -> list[Comparison]:
    """Compare our network with `variables` and torchvision's with `state_dict`.

    Returns one comparison for each precision, image size and module that has
    parameters, and for the logits, whose top-1 classes must also agree. Both sides get
    the same images, which are drawn from a standard normal distribution.
    """
    _, torchvision = import_torch()
    num_classes = variables["params"][head(TABLES[network])]["bias"].size
    model = getattr(torchvision.models, network)(num_classes=num_classes)
    # A plain dict, in which torch's layers do not expect counters that it lacks.
    named = dict(current_names(state_dict, TABLES[network]))
    model.load_state_dict(named, strict=True)
    ours = ARCHITECTURES[network].build(num_classes)
    return compare_modules(TABLES[network], ours, variables, model)


def compare_modules(
    table: Sequence[Row],
    ours: Any,
    variables: Any,
    theirs: Any,
    sizes: Sequence[tuple[int, int]] | None = None,
    precisions: Sequence[str] | None = None,
) -> list[Comparison]:
    """Compare one of our modules with one of torch's; see `compare`.

    By default the `sizes` of images are SIZES, and the `precisions` those of BARS.
    """
    import jax

    rows = []
    for precision in precisions or BARS:
        with environment.pinned(), jax.enable_x64(precision == "float64"):
            for height, width in sizes or SIZES:
                shape = (IMAGES, height, width, 3)
                images = np.random.default_rng(0).standard_normal(shape)
                images = images.astype(precision)
                expected = _torch_outputs(table, theirs, images)
                found = _our_outputs(table, ours, variables, images)
                rows += [
                    _row(precision, f"{height}×{width}", layer, found[layer], output)
                    for layer, output in expected.items()
                ]
    return rows


def _modules(table: Sequence[Row]) -> dict[str, str]:
    """Return the path of each module with parameters, and that of torch's."""
    return {row.flax.rpartition("/")[0]: row.torch.rpartition(".")[0] for row in table}


def _torch_outputs(
    table: Sequence[Row], model: Any, images: np.ndarray
) -> dict[str, np.ndarray]:
    """Return torch's module outputs and logits by our names, channels last."""
    import torch

    outputs = {}

    def keep(layer):
        def hook(_module, _inputs, output):
            # The output is copied, because a ReLU that follows works in place.
            array = output.detach().clone().numpy()
            outputs[layer] = np.moveaxis(array, 1, -1)

        return hook

    handles = [
        model.get_submodule(path).register_forward_hook(keep(layer))
        for layer, path in _modules(table).items()
    ]
    pixels = torch.from_numpy(np.moveaxis(images, -1, 1).copy())
    with torch.no_grad():
        logits = model.to(pixels.dtype).eval()(pixels)
    for handle in handles:
        handle.remove()
    return {**outputs, "logits": logits.numpy()}


def _our_outputs(
    table: Sequence[Row], model: Any, variables: Any, images: np.ndarray
) -> dict[str, np.ndarray]:
    """Return our module outputs and logits, computed in the precision of the images."""
    import jax

    def cast(leaf):  # but no counter
        return leaf.astype(images.dtype) if leaf.dtype.kind == "f" else leaf

    @jax.jit
    def run(variables, images):
        logits, captured = model.apply(
            jax.tree.map(cast, variables),
            images,
            train=False,
            capture_intermediates=lambda module, _: "/".join(module.path) in modules,
            mutable=["intermediates"],
        )
        outputs = {}
        for name in modules:
            found = captured["intermediates"]
            for part in name.split("/"):
                found = found[part]
            (outputs[name],) = found["__call__"]
        return logits, outputs

    modules = _modules(table)
    model = model.clone(dtype=images.dtype)
    # GPUs may use TF32 for float32 products, which is less precise than torch on a CPU.
    with jax.default_matmul_precision("highest"):
        logits, outputs = run(variables, images)
    return {name: np.asarray(x) for name, x in {**outputs, "logits": logits}.items()}


def _row(
    precision: str, size: str, layer: str, ours: np.ndarray, theirs: np.ndarray
) -> Comparison:
    if ours.shape != theirs.shape:
        nothing = (math.inf, math.inf, False)
        return Comparison(precision, size, layer, ours.shape, *nothing)
    difference = np.abs(ours - theirs)
    scale = np.linalg.norm(theirs)
    error = float(np.linalg.norm(difference) / scale) if scale else math.inf
    same_class = layer != "logits" or (ours.argmax(-1) == theirs.argmax(-1)).all()
    return Comparison(
        precision,
        size,
        layer,
        ours.shape,
        float(difference.max()),
        error,
        passed=bool(error <= BARS[precision] and same_class),  # False for NaN
    )


def _by_child(rows: Sequence[Comparison]) -> list[Comparison]:
    """Return one row for each child, with the largest differences of its modules.

    The shape is that of its last module.
    """
    found: dict[tuple[str, str, str], list[Comparison]] = {}
    for row in rows:
        child = row.layer.split("/")[0]
        found.setdefault((row.precision, row.size, child), []).append(row)
    return [
        parts[-1]._replace(
            layer=child,
            # NumPy's maximum, in contrast to Python's, is NaN if a part is.
            max_difference=float(np.max([part.max_difference for part in parts])),
            relative_error=float(np.max([part.relative_error for part in parts])),
            passed=all(part.passed for part in parts),
        )
        for (_, _, child), parts in found.items()
    ]


def _table(rows: Sequence[Comparison], certificate: Mapping[str, Any]) -> str:
    rows = _by_child(rows)
    wide = max(8, *(len(row.layer) + 1 for row in rows))
    lines = [
        f"{'precision':<11}{'images':<9}{'layer':<{wide}}{'shape':<16}{'max |Δ|':>9}"
        f"{'relative error':>16}  verdict"
    ]
    for row in rows:
        shape = "×".join(map(str, row.shape))
        lines.append(
            f"{row.precision:<11}{row.size:<9}{row.layer:<{wide}}{shape:<16}"
            f"{row.max_difference:>9.1e}{row.relative_error:>16.1e}  "
            f"{'equal' if row.passed else 'NOT EQUAL'}"
        )
    for name, value in certificate.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {entry}" for key, entry in value.items())
        lines.append(f"{name + ':':<19}{value}")
    return "\n".join(map(printable, lines))


if __name__ == "__main__":
    sys.exit(terminal.run(main))
