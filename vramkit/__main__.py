"""``python -m vramkit``."""

import sys

from vramkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
