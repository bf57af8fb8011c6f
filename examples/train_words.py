"""Learns vectors for the words of Python's standard library, with an open vocabulary.

The text is the source code of the installed standard library. Rows are stored in bfloat16, Adam
runs inside ``backward``, and no vocabulary is made: a word's id is a hash of its text. Run it with
`python examples/train_words.py`.
"""

import hashlib
import re
import sysconfig
from collections import Counter
from pathlib import Path

import torch
from torch.nn import functional

import vramkit

STEPS = 400
BATCH = 1024
CONTEXT = 4  # words on each side
NEGATIVE = 8  # words drawn at random, for each true one
WIDTH = 64
SHOWN = ("self", "import", "True", "open", "int")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def read_words() -> list[str]:
    """The identifiers and keywords of some hundred modules, in their order."""
    folder = Path(sysconfig.get_path("stdlib"))
    words = []
    for file in sorted(folder.glob("*.py")):
        words += re.findall(r"[A-Za-z_]\w*", file.read_text(encoding="utf-8", errors="replace"))
    return words


def id_of(word: str) -> int:
    """Any 64-bit number is an id: a hash of the text, so that new words need no list."""
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def batches(text: torch.Tensor, steps: int):
    """Each step's contexts (BATCH, 2 * CONTEXT), words (BATCH,) and wrong words."""
    offsets = torch.tensor([i for i in range(-CONTEXT, CONTEXT + 1) if i != 0])
    for _ in range(steps):
        middle = torch.randint(CONTEXT, len(text) - CONTEXT, (BATCH,))
        wrong = torch.randint(0, len(text), (BATCH, NEGATIVE))
        yield text[middle[:, None] + offsets], text[middle], text[wrong]


def loss_of(contexts, words, batch):
    """How badly a context's mean tells its true word from wrong ones."""
    around, true, wrong = (ids.to(DEVICE) for ids in batch)
    mean = contexts(around).float()
    candidates = words(torch.cat([true[:, None], wrong], dim=1)).float()
    scores = (candidates @ mean[:, :, None]).squeeze(2)
    target = torch.zeros_like(scores)
    target[:, 0] = 1
    return functional.binary_cross_entropy_with_logits(scores, target)


def main() -> None:
    torch.manual_seed(0)
    words = read_words()
    ids = {word: id_of(word) for word in set(words)}
    text = torch.tensor([ids[word] for word in words])
    print(f"{len(words):,} words of the standard library, {len(ids):,} different ones")

    options = {"optimizer": "adam", "lr": 0.01, "dtype": torch.bfloat16, "device": DEVICE}
    contexts = vramkit.nn.SparseEmbeddingBag(None, WIDTH, mode="mean", **options)
    targets = vramkit.nn.SparseEmbedding(None, WIDTH, **options)
    for step, batch in enumerate(batches(text, STEPS), start=1):
        loss = loss_of(contexts, targets, batch)
        loss.backward()  # updates both tables
        if step == 1 or step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    contexts.eval()
    stats = contexts.stats()
    print(f"{stats.rows_in_use:,} rows in use take {stats.bytes / 2**20:.1f} MiB")
    common = [word for word, _ in Counter(words).most_common(500)]
    with torch.no_grad():
        rows = contexts(torch.tensor([[ids[word]] for word in common], device=DEVICE)).float()
    rows = functional.normalize(rows - rows.mean(0), dim=1)
    for word in SHOWN:
        near = (rows @ rows[common.index(word)]).topk(5).indices.tolist()
        print(f"near {word}: {', '.join(common[i] for i in near[1:])}")


if __name__ == "__main__":
    main()
