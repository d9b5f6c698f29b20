"""Make the demo checkpoint, whose scores make sense without training: see `bgem3.export.demo_checkpoint`.

usage: python scripts/make_demo_checkpoint.py OUT_DIR [--seed N]
"""

import argparse
from pathlib import Path

from bgem3.export.demo_checkpoint import make_demo_checkpoint


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make a tiny checkpoint in BGE-M3's format.")
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(make_demo_checkpoint(arguments.folder, seed=arguments.seed))


if __name__ == "__main__":
    main()
