"""Benchmark the network alone by batch size and precision, with its roofline."""

import argparse
import functools
import json
import time
from typing import Any

from benchmarks.harness.pairs import compare, serve, worker
from benchmarks.harness.sides import describe, side, torch_at_its_best

# Multiplications and additions for one image of 224×224, by the layers' definition.
FORWARD_OPERATIONS = 2 * 710_133_440  # five convolutions, three products
# Each layer has gradients of its weights and its input, but conv1 only of its weights.
STEP_OPERATIONS = 3 * FORWARD_OPERATIONS - 2 * 55 * 55 * 64 * 3 * 11 * 11
OPERATIONS = {"forward": FORWARD_OPERATIONS, "step": STEP_OPERATIONS}
# Adam reads parameters, gradients and two moments (4) and writes all but the gradients
# (3). The backward pass writes the gradients (1); both passes read the parameters (2).
PARAMETERS = 57_044_810
STEP_BYTES = 4 * PARAMETERS * (4 + 3 + 1 + 2)
CPU = {"batches": (32, 64), "precisions": ("float32",)}
GPU = {"batches": (128, 256, 512, 1024), "precisions": ("float32", "bfloat16")}


def run(job: str, argv: list[str] | None, *, about: str) -> list[dict[str, Any]]:
    """Compare a job at every batch size and precision; return the results."""
    parser = argparse.ArgumentParser(description=about.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--gpu", action="store_true", help="run on an NVIDIA GPU")
    parser.add_argument(
        "--batch", type=int, action="append", help="only this batch size, or these"
    )
    options = parser.parse_args(argv)
    plan, where = (GPU, "gpu") if options.gpu else (CPU, "cpu")
    results = []
    for precision in plan["precisions"]:
        # Measured in a process that ends, so that its GPU memory is released.
        with worker(
            "benchmarks.harness.network", gpu=options.gpu, precision=precision
        ) as ask:
            rate, bandwidth, platform, device = ask()
        if options.gpu and platform != "gpu":
            print("no GPU found; nothing was measured")
            return []
        named = {"machine": device} if options.gpu else {}
        for batch in options.batch or plan["batches"]:
            task = {"job": job, "batch": batch, "precision": precision}
            task |= {"gpu": options.gpu}
            floor = batch * OPERATIONS[job] / rate
            if job == "step":
                floor += STEP_BYTES / bandwidth
            print(
                f"  roofline: {rate / 1e9:,.0f} GFLOP/s and {bandwidth / 1e9:,.0f} "
                f"GB/s allow {floor * 1e3:.1f} ms at best"
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
    """Return the device's measured rates and its names.

    They are operations per second, bytes per second, the platform and the device kind.
    """
    import jax
    import jax.numpy as jnp

    size = 2048 if jax.default_backend() == "cpu" else 8192
    square = jnp.ones((size, size), precision)
    product = jax.jit(lambda x: x @ x)
    # An array of the size of the network's parameters is read and written.
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
    """Measure the rates once for each request; see `serve`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", type=json.loads, required=True)
    options = parser.parse_args().worker
    serve(lambda: functools.partial(rates, **options))


if __name__ == "__main__":
    main()
