"""AlexNet's forward pass, images a second, beside PyTorch at its best.

    python -m benchmarks.forward

A batch of normalised images in memory, logits out. With --gpu the same on an NVIDIA
GPU, in float32 (TF32 products on both sides) and bfloat16, at batches of 128 to 1024.
"""

from typing import Any

from benchmarks.harness import network

JOB = "forward"


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run, print, and return the results."""
    return network.run(JOB, argv, about=__doc__)


if __name__ == "__main__":
    main()
