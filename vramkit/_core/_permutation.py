"""The order of ``torch.randperm``, made a part at a time."""

import ctypes
import weakref

from vramkit._core._library import call, library


class Permutation:
    """What ``torch.randperm(count)`` returns on the CPU for a generator just seeded with ``seed``.

    Only one thread at a time may use it. It takes 4 bytes of memory an entry.

    Args:
        seed: As ``torch.Generator.initial_seed`` returns it.
        count: How many entries, ``MAX_PERMUTATION`` at most.

    Raises:
        InvalidArgumentError: ``count`` is larger, or an integer is out of range.
        SystemCallError: There is no memory for it.
    """

    def __init__(self, seed: int, count: int) -> None:
        """Reserve the memory; nothing is drawn yet."""
        handle = ctypes.c_void_p()
        call("vramkit_permutation_create", seed, count, ctypes.byref(handle))
        self._handle = handle.value
        destroy = library().vramkit_permutation_destroy
        weakref.finalize(self, destroy, self._handle).atexit = False

    def next(self, address: int, count: int) -> None:
        """Write the next ``count`` entries to ``address``, as int64.

        Raises:
            InvalidArgumentError: Fewer are left, in which case nothing is written, or the address
                is null.
        """
        call("vramkit_permutation_next", self._handle, address, count)
