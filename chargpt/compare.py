"""Compare the runs of a sweep: `python -m chargpt.compare outputs/sweeps/...`."""

import sys

from chargpt.sweep.compare import main

if __name__ == "__main__":
    sys.exit(main())
