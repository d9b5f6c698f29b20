"""Export a BGE-M3 checkpoint to an artifact folder: `python scripts/export_model.py --help`."""

import sys

from bgem3.runtime.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
