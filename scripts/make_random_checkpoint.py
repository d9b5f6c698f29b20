"""Make a checkpoint with seeded random weights: see `bgem3.export.random_checkpoint`.

usage: python scripts/make_random_checkpoint.py TOKENIZER_JSON OUT_DIR [--seed N] [--layers N] [--hidden N] ...
"""

import argparse
from pathlib import Path

from bgem3.export.random_checkpoint import make_random_checkpoint


def main() -> None:
    """Read the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("tokenizer_json", type=Path)
    parser.add_argument("folder", type=Path)
    for name, default in (
        ("seed", 0),
        ("hidden", 1024),
        ("layers", 24),
        ("heads", 16),
        ("intermediate", 4096),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--vocabulary", type=int, help="default: the tokenizer's own")
    parser.add_argument("--max-length", type=int, default=8192)
    parser.add_argument("--weight-std", type=float, default=0.02)
    print(make_random_checkpoint(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
