"""First uses of libraries, in the order in which a process comes to them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

_SIZE = 256


def _half() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _matrix(dtype: torch.dtype = torch.float32, *, learns: bool = False) -> torch.Tensor:
    return torch.zeros(_SIZE, _SIZE, dtype=dtype, device="cuda", requires_grad=learns)


def _context() -> None:
    torch.zeros(1, device="cuda")


def _kernels() -> None:
    x = _matrix()
    (x + 1).sum().item()
    functional.gelu(x.softmax(-1)).mean()
    x.sort()


def _cublas() -> None:
    _matrix() @ _matrix()
    _matrix(_half()) @ _matrix(_half())


def _cublas_lt() -> None:
    for dtype in (_half(), torch.float32):
        functional.linear(_matrix(dtype), _matrix(dtype), _matrix(dtype)[0])


def _backward() -> None:
    """The thread of the backward pass has a handle of its own."""
    (_matrix(learns=True) @ _matrix(learns=True)).sum().backward()


def _cudnn() -> None:
    for dtype in (torch.float32, _half()):
        x = torch.zeros(2, 32, 28, 28, dtype=dtype, device="cuda", requires_grad=True)
        w = torch.zeros(32, 32, 3, 3, dtype=dtype, device="cuda", requires_grad=True)
        functional.conv2d(x, w, padding=1).sum().backward()


def _attention() -> None:
    for dtype in (_half(), torch.float32):
        q, k, v = (
            torch.zeros(2, 4, 128, 64, dtype=dtype, device="cuda", requires_grad=True)
            for _ in range(3)
        )
        functional.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()


def _training() -> None:
    """A small network of all kinds of layers, trained for two steps."""
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(2),
        nn.LayerNorm(256),
        nn.TransformerEncoderLayer(256, 4, 512, batch_first=True),
        nn.Flatten(),
        nn.Linear(32 * 256, 100),
    ).to("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    images = torch.zeros(8, 3, 16, 16, device="cuda")
    labels = torch.zeros(8, dtype=torch.long, device="cuda")
    for _ in range(2):
        with torch.autocast("cuda", _half()):
            loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _cusolver() -> None:
    torch.linalg.eigh(torch.eye(_SIZE, device="cuda"))
    torch.linalg.cholesky(torch.eye(_SIZE, device="cuda"))


def _cufft() -> None:
    torch.fft.irfft(torch.fft.rfft(_matrix()))


def _cusparse() -> None:
    torch.eye(_SIZE, device="cuda").to_sparse_csr() @ _matrix()


USES: dict[str, Callable[[], None]] = {
    "context": _context,
    "kernels": _kernels,
    "cuBLAS": _cublas,
    "cuBLASLt": _cublas_lt,
    "backward": _backward,
    "cuDNN": _cudnn,
    "attention": _attention,
    "training": _training,
    "cuSOLVER": _cusolver,
    "cuFFT": _cufft,
    "cuSPARSE": _cusparse,
}
