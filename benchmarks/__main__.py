"""Run the speed benchmarks and rewrite their table in benchmarks/README.md.

    python -m benchmarks [NAME …] [--pairs N] [--gpu]

Each result is a JSON line in benchmarks/results.jsonl and replaces the one of the same
name. The table is made of these lines, so benchmarks can be run one at a time.
"""

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

NAMES = (
    *("forward", "train_step", "loop", "finetune_epoch"),
    *("startup", "memory", "whole_run", "networks"),
)
WITH_GPU = ("forward", "train_step")
FOLDER = Path(__file__).parent
RESULTS, README = FOLDER / "results.jsonl", FOLDER / "README.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"


def main() -> None:
    """Run the named benchmarks; by default all, or with --gpu those that support it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--gpu", action="store_true", help="run on an NVIDIA GPU")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(
            f"{', '.join(sorted(unknown))}: unknown benchmark; pass one of "
            f"{', '.join(NAMES)}"
        )
    for name in options.names or (WITH_GPU if options.gpu else NAMES):
        flags = [] if name == "memory" else ["--pairs", str(options.pairs)]
        flags += ["--gpu"] if options.gpu and name in WITH_GPU else []
        print(f"\n{name}", flush=True)
        record(importlib.import_module(f"benchmarks.{name}").main(flags))


def record(results: list[dict[str, Any]]) -> None:
    """Store the results, replacing those of the same names, and rewrite the table."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    held = {result["name"]: result for result in map(json.loads, lines)}
    held |= {result["name"]: result for result in results}
    RESULTS.write_text("".join(json.dumps(result) + "\n" for result in held.values()))
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}{table(list(held.values()))}{END}{after}")


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table, with rows for missing GPU results."""
    rows = [
        "| benchmark | ours | PyTorch | ratio (range) | of the roofline "
        "| PyTorch's way | date, machine |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        ratio = ""
        if "ratio" in result:
            low, high = result["range"]
            ratio = f"**{result['ratio']:.2f}×** ({low:.2f}–{high:.2f})"
        share = f"{result['of_roofline']:.0%}" if "of_roofline" in result else ""
        rows.append(
            f"| {result['name']} | {result['ours']:,} {result['unit']} "
            f"| {result['torch']:,} {result['unit']} | {ratio} | {share} "
            f"| {result.get('torch_way', '')} | {result['date']}, {result['machine']} |"
        )
    names = [result["name"] for result in results]
    rows += [
        f"| {name}/gpu | unmeasured | unmeasured | | | | |"
        for name in ("forward", "step")
        if not any(known.startswith(f"{name}/gpu") for known in names)
    ]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
