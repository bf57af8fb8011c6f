"""Trains a small Conv+ReLU classifier on scikit-learn's handwritten digits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from vramkit.loader import DataLoader
from vramkit.nn import ConvReLU2d

BATCH = 128
_MAX_LEARNING_RATE = 0.01
_TEST_EVERY = 5

# Called after each piece of work with the name of its phase.
Look = Callable[[str], None]
# Called after each step with its number from 1, the number of steps, and its loss.
Tell = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Digits:
    """Images of shape (N, 1, 8, 8) from 0 to 1, and their digits, in host memory."""

    train_images: torch.Tensor
    train_digits: torch.Tensor
    test_images: torch.Tensor
    test_digits: torch.Tensor


@dataclass(frozen=True)
class Training:
    """The outcome: the loss of each step, and the part of the test images told right."""

    losses: torch.Tensor
    accuracy: float


def load_digits() -> Digits:
    """Load the dataset; every fifth image is for the test."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    digits = torch.from_numpy(bunch.target).long()
    test = torch.arange(len(digits)) % _TEST_EVERY == 0
    return Digits(images[~test], digits[~test], images[test], digits[test])


def make_model() -> nn.Sequential:
    """Three Conv+ReLU layers and a linear one."""
    return nn.Sequential(
        ConvReLU2d(1, 32, 3, padding=1),
        ConvReLU2d(32, 64, 3, padding=1),
        nn.MaxPool2d(2),
        ConvReLU2d(64, 64, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 2 * 2, 10),
    )


def steps_an_epoch(digits: Digits) -> int:
    """Number of batches, the last one smaller."""
    return -(-len(digits.train_digits) // BATCH)


def train(
    digits: Digits, device: torch.device, *, epochs: int, seed: int, look: Look, tell: Tell
) -> Training:
    """Train from scratch; the same seed gives the same losses.

    Args:
        digits: The data.
        device: Where to train.
        epochs: How often all training images are seen.
        seed: Of the weights and of the order of the images.
        look: Called after each layer's forward and backward and after the optimizer.
        tell: Called after each step.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = make_model().to(device)
        losses = _optimize(model, digits, device, epochs, look, tell)
    return Training(losses=torch.tensor(losses), accuracy=_accuracy(model, digits, device))


def _optimize(
    model: nn.Sequential,
    digits: Digits,
    device: torch.device,
    epochs: int,
    look: Look,
    tell: Tell,
) -> list[float]:
    steps = epochs * steps_an_epoch(digits)
    dataset = TensorDataset(digits.train_images, digits.train_digits)
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_MAX_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _MAX_LEARNING_RATE, total_steps=steps)
    losses: list[float] = []
    for _ in range(epochs):
        for images, expected in loader:
            scores = _forward(model, images, look)
            loss = functional.cross_entropy(scores, expected)
            look("forward")
            loss.backward()
            look("backward")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            losses.append(loss.item())
            # Nothing of this step may stand beside the next one's activations.
            del images, expected, scores, loss
            look("optimizer")
            tell(len(losses), steps, losses[-1])
    loader.close()
    return losses


def _forward(model: nn.Sequential, images: torch.Tensor, look: Look) -> torch.Tensor:
    def look_backward(_: torch.Tensor) -> None:
        look("backward")

    for layer in model:
        images = layer(images)
        images.register_hook(look_backward)
        look("forward")
    return images


def _accuracy(model: nn.Sequential, digits: Digits, device: torch.device) -> float:
    with torch.no_grad():
        right = sum(
            int((model(images.to(device)).argmax(dim=1).cpu() == expected).sum())
            for images, expected in zip(
                digits.test_images.split(BATCH), digits.test_digits.split(BATCH), strict=True
            )
        )
    return right / len(digits.test_digits)
