"""Compare bgem3 with every other encoder on this CPU: `python -m benchmarks run`, each rival in its own environment.

usage: python scripts/bench_latency.py [OPTION ...]   (`--help` lists them)

Full-size random weights are exported first, unless an artifact is named. That and the rivals' conversions take half an
hour, 30 GB of disk and 20 GB of memory once; measuring takes an hour or two on two cores.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.run import main

if __name__ == "__main__":
    sys.exit(main(["--environments", "benchmarks/scratch/environments", *sys.argv[1:]]))
