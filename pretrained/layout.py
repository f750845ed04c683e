"""Convert a network's weights between torch's and Flax's layout by its key table.

If weights do not fit the table, the error lists all that is missing, unexpected or of
a wrong shape or dtype, and what the weights probably are instead.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from pretrained.errors import WeightsError
from pretrained.misfit import (
    advice_on,
    checked_arrays,
    listed,
    mismatches,
    without_additions,
)
from pretrained.tables import ALEXNET, TABLES, Row

Table = tuple[Row, ...]
Params = dict[str, Any]  # nested dicts of arrays
Variables = dict[str, Params]  # the params of each collection, by its name


def to_variables(state_dict: Mapping[str, Any], name: str) -> Variables:
    """Convert the state_dict of a network in TABLES to a Linen module's variables.

    `state_dict` maps torchvision's names to float32 or float64 arrays (torch tensors,
    or anything that NumPy can read), with any number of classes. The result is nested
    dicts of new C-contiguous arrays of the same dtype: `{"params": …}`, and also
    `"batch_stats"` for a network that has running statistics, with its counters as
    int32.

    Every key is used once, and every leaf is set once. Raises WeightsError that lists
    all that is missing, unexpected or of a wrong shape or dtype.
    """
    return variables_of(state_dict, _table(name))


def to_state_dict(variables: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
    """Convert variables to a state_dict: the exact inverse of `to_variables`.

    The result maps torchvision's names, in its order, to new C-contiguous arrays
    (safetensors would write a transposed view incorrectly); counters are int64. Raises
    WeightsError like `to_variables`.
    """
    return state_dict_of(variables, _table(name))


def to_flax(state_dict: Mapping[str, Any], table: Table = ALEXNET) -> Params:
    """Convert a torchvision state_dict to Flax params: those of `to_variables`.

    With the default table the result is `{"conv1".."conv5", "fc6".."fc8": {"kernel",
    "bias"}}`. Its kernels are HWIO or [in, out], with fc6's rows in NHWC flatten order.
    """
    return variables_of(state_dict, table)["params"]


def to_torch(
    params: Mapping[str, Mapping[str, Any]], table: Table = ALEXNET
) -> dict[str, np.ndarray]:
    """Convert Flax params to a torchvision state_dict: the exact inverse of `to_flax`.

    A network with running statistics needs `to_state_dict` instead. Raises WeightsError
    like `to_state_dict`.
    """
    if not isinstance(params, Mapping):
        raise WeightsError(
            f"params: expected nested dicts of arrays, got a {type(params).__name__}; "
            "pass variables['params']"
        )
    if set(params) == {"params"}:
        raise WeightsError(
            "params: expected the params, got all variables; pass variables['params']"
        )
    return state_dict_of({"params": params}, table)


def variables_of(state_dict: Mapping[str, Any], table: Table) -> Variables:
    """Convert like `to_variables`, by the given table."""
    if not isinstance(state_dict, Mapping):
        raise WeightsError(
            f"state_dict: expected a mapping of names to arrays, got a "
            f"{type(state_dict).__name__}; pass model.state_dict()"
        )
    state_dict = current_names(state_dict, table)
    counts = {row.torch: row for row in table if row.kind == "count"}
    zero = np.zeros((), np.int64)
    absent = {name: zero for name in counts if name not in state_dict}
    arrays, problems = checked_arrays(
        {**state_dict, **absent}, counts, {row.torch: row.shape for row in table}
    )
    if problems:
        advice = advice_on(state_dict, table)
        # The advice comes first because the list is long for a different network.
        raise WeightsError(f"state_dict: {advice} ({listed(problems)})")
    variables: Variables = {}
    for collection in dict.fromkeys(row.collection for row in table):
        rows = [row for row in table if row.collection == collection]
        variables[collection] = nested(
            {row.flax: _moved(row, "to_flax", arrays[row.torch]) for row in rows}
        )
    return variables


def current_names(state_dict: Mapping[str, Any], table: Table) -> Mapping[str, Any]:
    """Return a state_dict with the names of today's torchvision, in the same order."""
    renamed = {row.also: row.torch for row in table if row.also is not None}
    if not renamed:
        return state_dict
    return {renamed.get(name, name): tensor for name, tensor in state_dict.items()}


def state_dict_of(variables: Mapping[str, Any], table: Table) -> dict[str, np.ndarray]:
    """Convert like `to_state_dict`, by the given table."""
    arrays = {
        collection: flat_arrays(variables.get(collection, {}), table, collection)
        for collection in dict.fromkeys(row.collection for row in table)
    }
    return {
        row.torch: _moved(row, "to_torch", arrays[row.collection][row.flax])
        for row in table
    }


def recognised(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the networks in TABLES whose weights have these names and shapes.

    The names are torch's, today's or older ones, or those of `flax_name`. Counters may
    be missing.
    """
    is_flax = any("/" in name for name in shapes)

    def fits(table: Table) -> bool:
        rows = {_name(row, table, is_flax): row for row in table}
        found = shapes if is_flax else current_names(shapes, table)
        absent = rows.keys() - found.keys()
        if found.keys() - rows.keys() or any(rows[n].kind != "count" for n in absent):
            return False
        arrays = {name: np.broadcast_to(0.0, shape) for name, shape in found.items()}
        expected = {
            name: flax_shape(row) if is_flax else row.shape
            for name, row in rows.items()
            if name not in absent
        }
        return not mismatches(arrays, expected)

    return [name for name, table in TABLES.items() if fits(table)]


def most_similar(names: Collection[str]) -> str:
    """Return the network in TABLES whose names are most similar; of several the first.

    The similarity is the share of the names that both have, of those that either has,
    without what wrappers of a model have added to them.
    """
    is_flax = any("/" in name for name in names)

    def similarity(table: Table) -> float:
        expected = {_name(row, table, is_flax) for row in table}
        found = set(
            current_names(dict.fromkeys(without_additions(names, expected)), table)
        )
        return len(expected & found) / len(expected | found)

    return max(TABLES, key=lambda name: similarity(TABLES[name]))


def _name(row: Row, table: Table, is_flax: bool) -> str:
    return flax_name(row, table) if is_flax else row.torch


def flax_name(row: Row, table: Table) -> str:
    """Return a tensor's name in files with Flax's names, such as "conv1/kernel".

    In a network that also has running statistics, a name begins with its collection:
    "params/conv1/kernel", "batch_stats/bn1/mean".
    """
    only_params = all(other.collection == "params" for other in table)
    return row.flax if only_params else f"{row.collection}/{row.flax}"


def flat_params(
    params: Mapping[str, Any], table: Table = ALEXNET
) -> dict[str, np.ndarray]:
    """Return nested or flat params that fit the table as `{"conv1/kernel": …}`.

    The arrays are not copied. Raises WeightsError like `to_flax`.
    """
    return flat_arrays(params, table, "params")


def flat_arrays(
    tree: Mapping[str, Any], table: Table, collection: str
) -> dict[str, np.ndarray]:
    """Return a nested or flat collection with paths as keys, in the table's order."""
    rows = [row for row in table if row.collection == collection]
    counts = {row.flax: row for row in rows if row.kind == "count"}
    arrays, problems = checked_arrays(
        flat(tree), counts, {row.flax: flax_shape(row) for row in rows}
    )
    if problems:
        expected = ", ".join(dict.fromkeys(row.flax.split("/")[0] for row in rows))
        raise WeightsError(
            f"{collection}: the arrays do not fit; pass a dict of the layers "
            f"{expected} ({listed(problems)})"
        )
    return {row.flax: arrays[row.flax] for row in rows}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Convert `{"conv1/kernel": …}` to `{"conv1": {"kernel": …}}` without copying."""
    tree: dict[str, Any] = {}
    for path, array in leaves.items():
        *parents, leaf = path.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = array
    return tree


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Convert `{"conv1": {"kernel": …}}` to `{"conv1/kernel": …}` without copying."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{above}{name}/")
        else:
            leaves[f"{above}{name}"] = value
    return leaves


def _table(name: str) -> Table:
    if name not in TABLES:
        raise WeightsError(
            f"{name!r}: unknown network; pass one of {', '.join(TABLES)}"
        )
    return TABLES[name]


def _moved(row: Row, way: str, array: np.ndarray) -> np.ndarray:
    """Return a new array, converted by a row in the direction `way`."""
    moved = getattr(row.transform, way)(array)
    if row.kind == "count":
        moved = moved.astype(np.int32 if way == "to_flax" else np.int64)
    return np.array(moved, order="C")


def flax_shape(row: Row) -> tuple[int | str, ...]:
    """Return a tensor's shape in Flax; a free dimension keeps its name."""
    # A free dimension has size 0 here, so that it can be found after the transform.
    free = next((size for size in row.shape if isinstance(size, str)), None)
    numbers = [0 if isinstance(size, str) else size for size in row.shape]
    shape = row.transform.to_flax(np.empty(numbers, np.bool_)).shape
    return tuple(free if free and size == 0 else size for size in shape)
