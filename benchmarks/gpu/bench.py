"""`hkd bench gpu` where hkd is not installed: `python benchmarks/gpu/bench.py [options]` from the checkout.

At most ten minutes on one CUDA device; a call that was interrupted goes on where it stopped.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from experiments.cli import main

    main(["bench", "gpu", *sys.argv[1:]])
