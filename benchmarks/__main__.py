"""Run a part of the laboratory: `python -m benchmarks run --help`."""

import importlib
import sys
from pathlib import Path

COMMANDS = {
    "run": "compare bgem3 with other encoders on this machine",
    "report": "write the tables and charts from benchmarks/results",
    "gpu": "measure everything on a CUDA device",
}


def main() -> int:
    """Call the named part's main function with the other arguments."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        listed = "\n".join(f"  {command:8} {job}" for command, job in COMMANDS.items())
        print(f"usage: python -m benchmarks COMMAND [OPTION ...]\n\n{listed}")
        return int(name not in ("-h", "--help"))
    sys.path.insert(0, str(Path(__file__).parent.parent))
    status: int = importlib.import_module(f"benchmarks.{name}").main(sys.argv[2:])
    return status


if __name__ == "__main__":
    sys.exit(main())
