"""A network as a table of its operations, as torch's `print(model)` shows them."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab.models.chain import children, takes


class Operation(NamedTuple):
    """One call of a module: its path, what it is, its output and its parameters."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    trained: bool | None  # None without parameters


class Summary(str):
    """A table that a notebook shows as it is."""

    def __repr__(self) -> str:
        """Return the table itself."""
        return str(self)


def summary(
    model: nn.Module, input_shape: Sequence[int], trainable: Any = None
) -> Summary:
    """Return a table of a module's operations, in the order in which they run.

    One row for each layer: name, kind with its settings, output shape for one example
    of `input_shape` (without the batch), number of parameters, and whether they are
    trained or frozen. `trainable` is a tree of bool like the params; by default all are
    trained. Nothing is computed. Operations that are plain functions, such as
    `nn.relu(x)` instead of `layers.ReLU()`, are part of a layer and have no row.

    Raises ValueError if `trainable` is not a tree like the params.

    >>> import jaxlab
    >>> print(summary(jaxlab.MLP(features=(8, 4), dropout_rate=0.5), (28, 28, 1)))
    layer    operation     output  parameters  state
    flatten  Flatten()     [784]
    fc1      Dense(8)      [8]     6,280       trained
    relu     ReLU()        [8]
    drop1    Dropout(0.5)  [8]
    fc2      Dense(4)      [4]     36          trained
    relu     ReLU()        [4]
    fc3      Dense(10)     [10]    50          trained
    total                          6,366       6,366 trained, 0 frozen
    """
    rows, counts = _operations(model, tuple(input_shape), trainable)
    cells = [("layer", "operation", "output", "parameters", "state")]
    for row in rows:
        state = {None: "", True: "trained", False: "frozen"}[row.trained]
        count = f"{row.parameters:,}" if row.trained is not None else ""
        shape = "[" + ", ".join(map(str, row.output[1:])) + "]"
        cells.append((row.name, row.kind, shape, count, state))
    total = f"{sum(counts.values()):,}"
    states = f"{counts[True]:,} trained, {counts[False]:,} frozen"
    cells.append(("total", "", "", total, states))
    widths = [max(len(row[i]) for row in cells) for i in range(5)]
    return Summary(
        "\n".join(
            "  ".join(
                cell.ljust(width) for cell, width in zip(row, widths, strict=True)
            ).rstrip()
            for row in cells
        )
    )


def largest_outputs(
    model: nn.Module, variables: Any, input_shape: tuple[int, ...]
) -> dict[str, int]:
    """Return the size of the largest output in each child of a chain, in values.

    It is that of one example of `input_shape`. `variables` may be shapes and dtypes:
    nothing is computed. The operations around a child have no larger outputs.
    """
    example = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    calls, _ = _recorded(
        functools.partial(model.apply, train=False), variables, example
    )
    sizes: dict[str, int] = {}
    for path, _, shape in calls:
        sizes[path[0]] = max(sizes.get(path[0], 0), math.prod(shape))
    return {child: sizes[child] for child in children(model)}


def _recorded(function: Callable, *arguments: Any) -> tuple[list[Any], Any]:
    """Trace a function; return its modules' calls, in order, and its result's shapes.

    A call is the module's path, the module, and the shape of its output.
    """
    calls: list[tuple[tuple[str, ...], nn.Module, Any]] = []

    def record(call, args, kwargs, context):
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        place = len(calls)
        output = call(*args, **kwargs)
        # A module that has called others is not an operation, but made of them.
        if len(calls) == place:
            calls.append((context.module.path, context.module, output.shape))
        return output

    with nn.intercept_methods(record):
        result = jax.eval_shape(function, *arguments)
    return calls, result


def _operations(
    model: nn.Module, input_shape: tuple[int, ...], trainable: Any
) -> tuple[list[Operation], dict[bool, int]]:
    """Return the operations, and the numbers of trained and of frozen parameters."""
    train: dict[str, Any] = {"train": False} if takes(model.apply, "train") else {}
    key = jax.random.key(0)
    example = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    calls, variables = _recorded(
        functools.partial(model.init, **train), {"params": key, "dropout": key}, example
    )
    params = variables.get("params", {})
    if trainable is None:
        trainable = jax.tree.map(lambda _: True, params)
    # JAX's PyTreeDef is defined in a compiled module without type stubs.
    elif jax.tree.structure(trainable) != jax.tree.structure(params):  # type: ignore[operator]
        raise ValueError(
            "trainable: expected a tree of bool like the params; make it with "
            "jaxlab.trainable_tree(params, patterns)"
        )
    rows, counted = [], set()
    for path, module, shape in calls:
        leaves = jax.tree.leaves(_at(params, path))
        trained = None
        if leaves and path not in counted:
            trained = any(jax.tree.leaves(_at(trainable, path)))
            counted.add(path)
        count = sum(leaf.size for leaf in leaves) if trained is not None else 0
        name = "/".join(path) or type(module).__name__
        rows.append(Operation(name, _kind(module), shape, count, trained))
    counts = {True: 0, False: 0}
    is_trained = flax.traverse_util.flatten_dict(trainable)
    for path, leaf in flax.traverse_util.flatten_dict(params).items():
        counts[bool(is_trained[path])] += leaf.size
        if not any(path[: len(other)] == other for other in counted):
            # A parameter of a module that also calls others.
            name = "/".join(path)
            row = Operation(name, "parameter", (1, *leaf.shape), leaf.size, False)
            rows.append(row._replace(trained=bool(is_trained[path])))
    return rows, counts


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree.get(name, {}) if isinstance(tree, dict) else {}
    return tree


def _kind(module: nn.Module) -> str:
    """Return a module's class with its settings, but for defaults."""
    settings: list[str] = []
    for name, field in type(module).__dataclass_fields__.items():
        value = getattr(module, name)
        if name in ("parent", "name", "dtype") or callable(value):
            continue
        # torch prints a dropout's rate, although it has a default.
        is_main = field.default is dataclasses.MISSING or name == "rate"
        if is_main and len(settings) < 2:
            settings.append(f"{value}")
        elif value != field.default:
            settings.append(f"{name}={value}")
    return f"{type(module).__name__}({', '.join(settings)})"
