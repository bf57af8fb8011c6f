"""``python -m vramkit._build``: builds what is bound to the installed torch anew."""

from __future__ import annotations

import sys

from . import BuildError
from ._first_use import rebuild


def main() -> int:
    """Rebuild, print the paths, and return the exit status."""
    try:
        for path in rebuild():
            print(path)
    except BuildError as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
