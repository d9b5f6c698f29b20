"""`bgem3 bench` beside every other encoder that can run: the benchmark that the README quotes.

usage: python scripts/bench_latency.py [--work FOLDER] [OPTION ...]   (the options of `bgem3 bench`, and its defaults
but for --peers all --environments WORK/environments --precisions int8 fp32 fp16 --parts matrix_rate breakdown scenarios
--output benchmarks/cpu.json)

Without an artifact, full-size random weights are exported; that and the peers' conversions take 30 GB of disk in WORK,
20 GB of memory and half an hour, once; measuring takes about an hour on two cores.
"""

import sys
from pathlib import Path

from bgem3.runtime.cli import main

if __name__ == "__main__":
    options = sys.argv[1:]
    work = options[options.index("--work") + 1] if "--work" in options else "benchmarks/scratch"
    defaults = ["--peers", "all", "--environments", str(Path(work) / "environments"), "--work", work]
    defaults += ["--precisions", "int8", "fp32", "fp16", "--parts", "matrix_rate", "breakdown", "scenarios"]
    defaults += ["--output", "benchmarks/cpu.json"]
    sys.exit(main(["bench", *defaults, *options]))
