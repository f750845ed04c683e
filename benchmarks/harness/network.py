"""What the benchmarks of the bare network share: batches, precisions, the roofline."""

import argparse
import functools
import json
import time
from typing import Any

from benchmarks.harness.pairs import compare, serve, worker
from benchmarks.harness.sides import describe, side, torch_at_its_best

# Multiplications and additions for one image of 224×224, as the layers define them.
FORWARD_OPERATIONS = 2 * 710_133_440  # of five convolutions and three products
# Each layer's input and weights get a gradient, the images do not.
STEP_OPERATIONS = 3 * FORWARD_OPERATIONS - 2 * 55 * 55 * 64 * 3 * 11 * 11
OPERATIONS = {"forward": FORWARD_OPERATIONS, "step": STEP_OPERATIONS}
# Adam reads parameters, gradients and two moments, and writes all but the gradients;
# the gradients are written, and the parameters read, once more by the two passes.
PARAMETERS = 57_044_810
STEP_BYTES = 4 * PARAMETERS * (4 + 3 + 1 + 2)
CPU = {"batches": (32, 64), "precisions": ("float32",)}
GPU = {"batches": (128, 256, 512, 1024), "precisions": ("float32", "bfloat16")}


def run(job: str, argv: list[str] | None, *, about: str) -> list[dict[str, Any]]:
    """Compare a job at every batch size and precision; return the results."""
    parser = argparse.ArgumentParser(description=about.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--gpu", action="store_true", help="on an NVIDIA GPU")
    options = parser.parse_args(argv)
    plan, where = (GPU, "gpu") if options.gpu else (CPU, "cpu")
    results = []
    for precision in plan["precisions"]:
        # In a process that ends: what it takes of a GPU's memory is given back.
        with worker(
            "benchmarks.harness.network", gpu=options.gpu, precision=precision
        ) as ask:
            rate, bandwidth, platform, device = ask()
        if options.gpu and platform != "gpu":
            print("no GPU: nothing measured")
            return []
        named = {"machine": device} if options.gpu else {}
        for batch in plan["batches"]:
            task = {"job": job, "batch": batch, "precision": precision}
            task |= {"gpu": options.gpu}
            floor = batch * OPERATIONS[job] / rate
            if job == "step":
                floor += STEP_BYTES / bandwidth
            print(
                f"  {rate / 1e9:,.0f} GFLOP/s and {bandwidth / 1e9:,.0f} GB/s would "
                f"take {floor * 1e3:.1f} ms"
            )
            way = torch_at_its_best(**task)
            with (
                side(who="torch", **task, **way) as theirs,
                side(who="ours", **task) as ours,
            ):
                result = compare(
                    f"{job}/{where}/{precision}/batch {batch}",
                    ours,
                    theirs,
                    pairs=options.pairs,
                    images=batch,
                    floor=floor,
                    torch_way=describe(way),
                    **named,
                )
            results.append(result)
    return results


def rates(precision: str) -> tuple[float, float, str, str]:
    """Return what the device reaches, operations and bytes a second, and its names."""
    import jax
    import jax.numpy as jnp

    size = 2048 if jax.default_backend() == "cpu" else 8192
    square = jnp.ones((size, size), precision)
    product = jax.jit(lambda x: x @ x)
    # Read and written: as much as the network's parameters.
    long = jnp.ones(PARAMETERS, jnp.float32)
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)

    def best(call: Any) -> float:
        seconds = []
        for _ in range(11):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        return min(seconds[1:])

    def once_over():
        nonlocal long
        long = copy(long)
        long.block_until_ready()

    rate = 2 * size**3 / best(lambda: product(square).block_until_ready())
    device = jax.devices()[0]
    bandwidth = 2 * long.nbytes / best(once_over)
    return rate, bandwidth, device.platform, device.device_kind


def main() -> None:
    """Serve the rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", type=json.loads, required=True)
    options = parser.parse_args().worker
    serve(lambda: functools.partial(rates, **options))


if __name__ == "__main__":
    main()
