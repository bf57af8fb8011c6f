"""Seeds of stress tests: fresh in each run, printed, and replayed on request."""

import os
import time

VARIABLE = "VRAMKIT_STRESS_SEED"


def stress_seed() -> int:
    """A fresh seed, or the one in VRAMKIT_STRESS_SEED; pytest shows it when the test fails."""
    given = os.environ.get(VARIABLE)
    seed = int(given) if given else time.time_ns()
    print(f"replay with {VARIABLE}={seed}")
    return seed
