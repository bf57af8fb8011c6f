"""What a failed build raises."""

from __future__ import annotations


class BuildError(RuntimeError):
    """A native library could not be built or does not fit; the text says what to do."""
