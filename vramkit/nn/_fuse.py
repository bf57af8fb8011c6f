"""Fusing the Conv-ReLU pairs of an existing model."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vramkit.errors import ArgumentTypeError, InvalidArgumentError
from vramkit.nn._modules import with_relu
from vramkit.nn._paths import Save
from vramkit.nn._report import FusionEntry, FusionReport
from vramkit.nn._survey import survey

Model = TypeVar("Model", bound=nn.Module)


def fuse_conv_relu(
    model: Model, *, save: Save | Literal["auto"] = "auto", fold_batch_norm: bool = False
) -> Model:
    """Let each convolution of a model compute the ReLU that follows it.

    A ``ConvReLU2d`` (``1d``, ``3d``) takes the place of the convolution, with the same parameter
    objects and the same keys in the ``state_dict``; ``nn.Identity`` takes the place of the ReLU. A
    pair is left alone if anything else could notice: a second consumer of the convolution's output,
    hooks, a module used twice, parametrizations, a subclass. :func:`fusion_report` says why.

    Pairs are found in the graph of ``torch.fx``; parts that do not trace are looked through for
    ``nn.Sequential``, which is then expected to be called as a whole.

    Args:
        model: It is changed in place.
        save: What is kept for ReLU's gradient. ``"auto"`` keeps a mask where no consumer of the
            ReLU keeps its input, and the output elsewhere; pairs that are fused already stay as
            they are. ``"output"`` and ``"mask"`` are for all pairs, those fused already too.
        fold_batch_norm: Fold a batch normalization between convolution and ReLU into new weights.
            This is for inference only: the keys of the normalization leave the ``state_dict``.

    Returns:
        The same model.

    Raises:
        ArgumentTypeError: ``model`` is no ``nn.Module``, or has been compiled or scripted.
        InvalidArgumentError: ``save`` is unknown, or ``fold_batch_norm`` is set for a model in
            training mode.

    Example:
        >>> from torch import nn
        >>> import vramkit
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        >>> vramkit.nn.fuse_conv_relu(model)[0]
        ConvReLU2d(3, 8, kernel_size=(3, 3), stride=(1, 1), save='mask')
    """
    if save not in ("auto", "output", "mask"):
        raise InvalidArgumentError(f"save must be 'auto', 'output' or 'mask', got {save!r}")
    _check_model(model)
    if fold_batch_norm and any(module.training for module in model.modules()):
        raise InvalidArgumentError(
            "fold_batch_norm=True needs a model in evaluation mode, as training changes the "
            "statistics that are folded; call model.eval() first"
        )
    for entry in survey(model, fold_batch_norm=fold_batch_norm):
        if entry.status == "fusible":
            _fuse(model, entry, save)
        elif entry.status == "fused" and save != "auto":
            model.get_submodule(entry.name).__dict__["save"] = save
    return model


def fusion_report(model: nn.Module) -> FusionReport:
    """Return what :func:`fuse_conv_relu` has done with a model, or would do, and why.

    Args:
        model: It stays as it is.

    Raises:
        ArgumentTypeError: ``model`` is no ``nn.Module``, or has been compiled or scripted.

    Example:
        >>> from torch import nn
        >>> import vramkit
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Sigmoid())
        >>> print(vramkit.nn.fusion_report(vramkit.nn.fuse_conv_relu(model)))
        Conv+ReLU: 1 fused, 0 fusible, 1 left
        fused   0: ConvReLU2d keeps its output for ReLU's gradient
        left    2: no ReLU follows, but 3 (Sigmoid)
    """
    _check_model(model)
    return FusionReport(tuple(survey(model, fold_batch_norm=False)))


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise ArgumentTypeError(
            f"the modules of a compiled or scripted {type(model).__name__} cannot be replaced; "
            "call fuse_conv_relu before torch.compile or torch.jit.script"
        )


def _fuse(model: nn.Module, entry: FusionEntry, save: Save | Literal["auto"]) -> None:
    assert entry.relu is not None
    assert entry.save is not None
    fused = with_relu(model.get_submodule(entry.name), entry.save if save == "auto" else save)
    if entry.batch_norm is not None:
        _fold(fused, model.get_submodule(entry.batch_norm))
    # The fused module comes first: with its ReLU still there, the model computes the same.
    names = [name for name in (entry.name, entry.batch_norm, entry.relu) if name is not None]
    before = [model.get_submodule(name) for name in names]
    try:
        for name in names:
            _replace(model, name, fused if name == entry.name else nn.Identity())
    except BaseException:
        for name, module in zip(names, before, strict=True):
            parent, _, last = name.rpartition(".")
            model.get_submodule(parent)._modules[last] = module
        raise


def _fold(convolution: Any, norm: Any) -> None:
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        *(convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps),
        *(norm.weight, norm.bias),
    )


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    module.training = model.get_submodule(name).training
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
