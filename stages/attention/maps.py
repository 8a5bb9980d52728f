"""Attention over an image's patches as maps, and the share of a map on an object."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stages.core.stage import InputError

# How far from 1 a row of attention weights may sum up. Float32 softmax is off by about 1e-6; weights after dropout, or
# summed along another axis, are off by far more.
TOLERANCE = 1e-3


def check_rows_sum_to_one(weights: Tensor) -> Tensor:
    """The same weights; raises `ArithmeticError` unless the last axis sums to 1 everywhere."""
    error = (weights.sum(-1) - 1).abs().max().item()
    if not error < TOLERANCE:  # also true for NaN
        raise ArithmeticError(f"attention weights do not sum to 1: off by {error:.2g}")
    return weights


def resolve_index(count: int, index: int, param: str, units: str) -> int:
    """`index`, which may be negative, counted from 0; raises `InputError` naming `param` if it is out of range."""
    if not -count <= index < count:
        raise InputError(f"{param} = {index}: there are {count} {units}, 0 to {count - 1}, or -1 for the last")
    return index % count


def class_token_maps(weights: Tensor, prefix: int, grid: tuple[int, int]) -> Tensor:
    """Attention of the class token to the patches, one map per head: `(B, heads, rows, columns)`.

    `weights` are `(B, heads, tokens, tokens)`. The first of the `prefix` tokens before the patches is the class token.
    """
    return check_rows_sum_to_one(weights)[:, :, 0, prefix:].unflatten(-1, grid)


def rollout(blocks: Sequence[Tensor], prefix: int, grid: tuple[int, int]) -> Tensor:
    """Attention rollout of the class token, `(B, rows, columns)`, from the weights of all blocks, first block first.

    With A_i the mean over the heads of block i, the result is the first row of R_n, where R_i = (A_i + I) R_(i-1) / 2
    and R_0 = I. The identity stands for the residual connection. Source: Abnar and Zuidema, 2020, "Quantifying
    attention flow in transformers".
    """
    # The first row of a product of matrices is the first row of the leftmost matrix, times the others one by one. So
    # start at the last block; no product of two matrices is needed.
    row = torch.zeros_like(blocks[-1][:, 0, :1])  # (B, 1, tokens)
    row[..., 0] = 1  # the first row of the identity
    for weights in reversed(blocks):
        mean = check_rows_sum_to_one(weights).mean(1)
        row = (row @ mean + row) / 2
    return row[:, 0, prefix:].unflatten(-1, grid)


def upsample(attention: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps `(..., rows, columns)` resized bilinearly to `(..., *size)`."""
    leading = attention.shape[:-2]
    # `interpolate` takes (N, C, rows, columns): all leading axes become channels.
    channels = attention.reshape(1, -1, *attention.shape[-2:])
    return F.interpolate(channels, size=size, mode="bilinear", align_corners=False).reshape(*leading, *size)


def relative_to_uniform(attention: Tensor) -> Tensor:
    """Maps `(..., rows, columns)` as multiples of uniform attention: their mean is 1."""
    return attention / attention.mean((-2, -1), keepdim=True)


def density(attention: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Attention per pixel, `(..., *size)`, summing to 1, from maps `(..., rows, columns)`.

    A pixel belongs to the patch that contains its center. A patch's attention is divided equally among its pixels.
    """
    height, width = size
    rows, columns = attention.shape[-2:]
    pixel_row = ((np.arange(height) + 0.5) * rows / height).astype(int)  # (height,): row of each pixel's patch
    pixel_column = ((np.arange(width) + 0.5) * columns / width).astype(int)
    per_pixel = attention[..., pixel_row[:, None], pixel_column]
    # Patches differ by a pixel in size if the image's sides are not multiples of the grid's.
    pixels_in_patch = np.bincount(pixel_row)[pixel_row][:, None] * np.bincount(pixel_column)[pixel_column]
    per_pixel = per_pixel / pixels_in_patch
    # Leaves out the class token's share of the softmax.
    return per_pixel / per_pixel.sum((-2, -1), keepdims=True)


def attention_mass(densities: np.ndarray, inside: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Percent of the attention on `counted` pixels that is `inside`; `densities` are `(..., H, W)`."""
    inside_mass = np.tensordot(densities, inside.astype(densities.dtype), 2)
    counted_mass = np.tensordot(densities, counted.astype(densities.dtype), 2)
    return 100 * inside_mass / counted_mass


def object_area(inside: np.ndarray, counted: np.ndarray) -> float:
    """Percent of the `counted` pixels that are `inside`: the mass of uniform attention."""
    return float(100 * inside.sum() / counted.sum())


def peak_pixel(attention: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    """Row and column of the pixel at the center of the patch with the highest attention."""
    height, width = size
    rows, columns = attention.shape
    row, column = divmod(int(attention.argmax()), columns)
    return int((row + 0.5) * height / rows), int((column + 0.5) * width / columns)
