"""What the simulator raises about its input."""

from vramkit.errors import InvalidArgumentError


class TraceError(InvalidArgumentError):
    """A trace that cannot be read, or whose events contradict each other."""
