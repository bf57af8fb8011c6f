"""What a loader tells about itself."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoaderStats:
    """Figures of a loader since it was created; times are seconds, sizes are bytes.

    Attributes:
        path: How batches are made now: ``"arrays"`` (gathered from the dataset's arrays),
            ``"workers"`` (worker processes that write into shared slots), ``"threads"``,
            ``"inline"`` (in the training loop's thread) or ``"torch"`` (PyTorch's own workers).
        reason: Why it is not ``"arrays"``, or why it is ``"torch"``; empty otherwise.
        batches: Batches delivered.
        wait_s: Time that the training loop spent in the loader. If this is a large part of an
            epoch, the loop waits for data.
        fetch_s: Time that workers spent fetching and collating, summed over all of them.
        staged_bytes: Bytes of batches that went through staging memory.
        staging_bytes: Staging memory in use now, of all slots.
        pinned_bytes: How much of it is pinned.
        registered_bytes: Memory of the dataset's own arrays that is registered with CUDA; the GPU
            copies their rows itself.
        not_registered: Why none is, if batches are gathered for a GPU; empty otherwise.
        refused_batches: Batches that found no room in staging memory and went PyTorch's way.
        last_refusal: Why the last of them did.
    """

    path: str
    reason: str
    batches: int
    wait_s: float
    fetch_s: float
    staged_bytes: int
    staging_bytes: int
    pinned_bytes: int
    registered_bytes: int
    not_registered: str
    refused_batches: int
    last_refusal: str
