"""Compare AlexNet's forward pass, in images per second, with PyTorch's fastest.

    python -m benchmarks.forward

The input is a batch of normalised images in memory, and the output is the logits. With
--gpu it runs on an NVIDIA GPU, in float32 (with TF32 matrix products on both sides) and
bfloat16, with batch sizes from 128 to 1024.
"""

from typing import Any

from benchmarks.harness import network

JOB = "forward"


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the benchmark, and print and return the results."""
    return network.run(JOB, argv, about=__doc__)


if __name__ == "__main__":
    main()
