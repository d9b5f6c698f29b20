"""Compare bgem3 with other encoders on this CPU: the same as `python -m benchmarks run`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
