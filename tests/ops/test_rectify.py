"""ReLU after a convolution: the native operators against torch's, on every device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vramkit.nn._operators import format_of, masked_relu, unpack_mask

OPS = torch.ops.vramkit
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SHAPES = [
    (2, 3),
    (1, 8, 16),
    (3, 5, 7, 1),
    (2, 16, 9, 8),
    (2, 3, 64, 65),
    (2, 8, 3, 4, 5),
    (0, 4, 2),
]
LAYOUTS = [(shape, False) for shape in SHAPES] + [(s, True) for s in SHAPES if len(s) > 3]


def _random(shape: tuple[int, ...], channels_last: bool, device: str, dtype: torch.dtype) -> Tensor:
    """Values of all kinds: zeros of both signs, infinities and NaN too."""
    tensor = torch.randn(shape, device=device)
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan")], device=device)
    chosen = torch.randint(0, 40, shape, device=device)
    tensor = torch.where(chosen < 5, special[chosen.clamp(max=4)], tensor).to(dtype)
    if channels_last:
        form = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        return tensor.contiguous(memory_format=form)
    return tensor


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "channels_last"), LAYOUTS)
def test_masks_and_gradients_are_torchs(
    shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype, device: str
) -> None:
    x = _random(shape, channels_last, device, dtype)
    form = format_of(x)
    assert form is not None
    grad = torch.randn_like(x)
    bias = torch.randn(shape[1], device=device, dtype=dtype)
    column = bias.view(-1, *(1,) * (len(shape) - 2))
    for given, plain in ((None, x.relu()), (bias, (x + column).relu())):
        output = x.clone()
        mask = OPS.relu_mask_(output, given)
        torch.testing.assert_close(output, plain, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(unpack_mask(mask, x.shape, form), ~(plain <= 0))
        wanted = torch.where(plain <= 0, 0, grad)
        for saved, operator in ((mask, OPS.relu_mask_backward), (output, OPS.relu_backward)):
            found, no_bias = operator(grad, saved, False)
            assert torch.equal(found, wanted)
            assert format_of(found) == format_of(x)
            assert no_bias.numel() == 0
            found, bias_grad = operator(grad, saved, True)
            assert torch.equal(found, wanted)
            sums = wanted.double().sum([d for d in range(x.ndim) if d != 1])
            torch.testing.assert_close(bias_grad.double(), sums, rtol=1e-2, atol=1e-3)
            assert bias_grad.dtype == dtype
    output = x.clone()
    OPS.bias_relu_(output, bias)
    torch.testing.assert_close(output, (x + column).relu(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_sum_of_many_elements_is_accurate(channels_last: bool, device: str) -> None:
    x = torch.ones(8, 5, 200, 200, device=device)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    grad = torch.rand_like(x)
    _, found = OPS.relu_backward(grad, x, True)
    torch.testing.assert_close(found.double(), grad.double().sum((0, 2, 3)), rtol=1e-6, atol=0)
    assert torch.equal(found, OPS.relu_backward(grad, x, True)[1])


def test_memory_that_is_not_aligned(device: str) -> None:
    whole = torch.randn(1 + 2 * 8 * 24, device=device, dtype=torch.bfloat16)
    x, grad = (
        whole[1:].view(2, 8, 24),
        torch.randn(385, device=device).bfloat16()[1:].view(2, 8, 24),
    )
    plain, first = x.relu(), whole[0].clone()
    mask = OPS.relu_mask_(x, None)
    assert torch.equal(x, plain)
    assert whole[0] == first
    wanted = torch.where(plain > 0, grad, 0)
    assert torch.equal(OPS.relu_mask_backward(grad, mask, True)[0], wanted)


def test_the_bits_of_a_mask_are_in_the_documented_order(device: str) -> None:
    x = -torch.ones(1, 1, 10, device=device)
    x[..., 0] = x[..., 3] = x[..., 9] = 1
    assert OPS.relu_mask_(x, None).tolist() == [0b00001001, 0b00000010]


def test_what_does_not_fit_is_refused(device: str) -> None:
    x = torch.ones(2, 3, 4, 5, device=device)
    mask = torch.zeros(15, dtype=torch.uint8, device=device)
    last = x.contiguous(memory_format=torch.channels_last)
    for call, text in [
        (lambda: OPS.relu_mask_(x.permute(0, 3, 2, 1)[:, :3], None), "contiguous or channels-last"),
        (lambda: OPS.relu_mask_(x.int(), None), "expected float32, float64, float16 or bfloat16"),
        (lambda: OPS.relu_mask_(x.flatten(), None), r"expected \(N, C, ...\), got 1 dimension"),
        (lambda: OPS.bias_relu_(x, x[0, 0, 0]), "one bias for each of 3 channels"),
        (lambda: OPS.bias_relu_(x, x[0, :, 0, 0].half().clone()), "the dtype of the tensor"),
        (lambda: OPS.relu_mask_backward(x, mask[1:], False), "120 elements needs a mask of 15"),
        (lambda: OPS.relu_backward(x, last, False), "the shape, memory format and dtype"),
        (lambda: OPS.relu_backward(x, x.half(), False), "the shape, memory format and dtype"),
    ]:
        with pytest.raises(RuntimeError, match=text):
            call()


def test_opcheck(device: str) -> None:
    x, bias = torch.randn(2, 3, 4, 5, device=device), torch.randn(3, device=device)
    mask = OPS.relu_mask_(x.clone(), None)
    for operator, arguments in [
        (OPS.bias_relu_, (x, bias)),
        (OPS.relu_mask_, (x, bias)),
        (OPS.relu_mask_, (x, None)),
        (OPS.relu_backward, (x, x, True)),
        (OPS.relu_mask_backward, (x, mask, True)),
        (OPS.relu_mask_backward, (x, mask, False)),
    ]:
        torch.library.opcheck(operator.default, arguments)
    for channels_last in (False, True):
        tensor = x.clone().requires_grad_()
        torch.library.opcheck(masked_relu, (tensor, channels_last))
