"""Trains a digit classifier inside a vramkit memory pool, and checks that nothing else changes.

Run it with `python examples/train_digits.py`; needs `pip install 'vramkit[demo]'`.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import vramkit

EPOCHS = 12
BATCH = 128
MIB = 1 << 20

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

bunch = load_digits()
images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
digits = torch.from_numpy(bunch.target)
is_test = torch.arange(len(digits)) % 5 == 0


def train(after_step=lambda: None):
    """Train from scratch; return the loss of each step and the accuracy on unseen images."""
    torch.manual_seed(0)
    model = nn.Sequential(
        vramkit.nn.ConvReLU2d(1, 32, 3, padding=1),
        vramkit.nn.ConvReLU2d(32, 64, 3, padding=1),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(64 * 2 * 2, 10),
    ).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005)
    # PyTorch's loader with one more argument: batches arrive where the model is.
    dataset = TensorDataset(images[~is_test], digits[~is_test])
    loader = vramkit.DataLoader(dataset, batch_size=BATCH, shuffle=True, device=DEVICE)
    losses = []
    for _ in range(EPOCHS):
        for batch, expected in loader:
            loss = nn.functional.cross_entropy(model(batch), expected)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            after_step()
    loader.close()
    with torch.no_grad():
        right = model(images[is_test].to(DEVICE)).argmax(dim=1).cpu() == digits[is_test]
    return torch.tensor(losses), right.float().mean().item()


def main():
    torch.set_num_threads(1)  # images of 8 x 8 pixels are too small for more
    torch.backends.cudnn.deterministic = True  # losses are compared bit for bit
    plain_losses, _ = train()

    # The only lines that a training script needs: make a pool, and train inside it.
    pool = vramkit.MemoryPool("128MiB", device=DEVICE)
    highest_mib, mapped_mib = [], []

    def look():
        stats = pool.stats()
        highest_mib.append(stats.peak_live_bytes / MIB)
        mapped_mib.append(stats.mapped_bytes / MIB)
        pool.reset_peak_stats()

    with pool:
        losses, accuracy = train(look)

    print(pool.memory_summary())
    print(f"accuracy on unseen digits: {accuracy:.4f}")
    print(f"losses as outside the pool, bit for bit: {torch.equal(losses, plain_losses)}")

    plt.plot(mapped_mib, label="mapped")
    plt.plot(highest_mib, label="live, highest in the step")
    plt.axhline(pool.stats().capacity_bytes / MIB, color="red", linestyle="--", label="budget")
    plt.xlabel("training step")
    plt.ylabel("MiB")
    plt.legend()
    plt.savefig("train_digits.png")


if __name__ == "__main__":
    main()
