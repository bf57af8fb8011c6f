"""Operators whose allocations inside are neither measured nor read from PyTorch's source."""

from __future__ import annotations

_FAMILIES = (
    *("aten::_fft_", "aten::linalg_", "aten::_linalg_", "aten::_cdist_backward", "aten::mode"),
    *("aten::_cudnn_ctc", "aten::_unique"),
    *("aten::unique", "aten::_transformer_encoder_layer", "aten::_native_multi_head_attention"),
    *("aten::bincount", "aten::_sparse", "aten::cholesky", "aten::triangular"),
    *("aten::cudnn_batch_norm", "aten::grid_sampler", "aten::_convert_weight_to_int4pack"),
    *("aten::_scaled_mm", "aten::_flash_attention", "aten::_flex_attention"),
)
_KNOWN_OF_THEM = (
    *("aten::linalg_vector_norm", "aten::linalg_cross"),
    *("vramkit::relu_", "vramkit::bias_relu_"),
)
_KNOWN_LIBRARIES = (*("aten::", "prims::", "prim::", "c10d::", "_c10d_functional::", "fsdp::"),)


def is_unknown(name: str) -> bool:
    """Tell whether an operator may allocate what nothing here knows of.

    >>> is_unknown("aten::_fft_r2c"), is_unknown("mylib::kernel"), is_unknown("aten::mm")
    (True, True, False)
    """
    if name.startswith(_KNOWN_OF_THEM):
        return False
    return name.startswith(_FAMILIES) or not name.startswith(_KNOWN_LIBRARIES)
