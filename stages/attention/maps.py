"""Attention over an image's patches as maps, and how much of a map lies on an object."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stages.core.stage import InputError

TOLERANCE = 1e-3  # how far from 1 a row of attention weights may sum up in single precision


def check_rows(weights: Tensor) -> Tensor:
    """The same weights; raises `ArithmeticError` unless the last axis sums to 1 everywhere."""
    off = (weights.sum(-1) - 1).abs().max().item()
    if not off < TOLERANCE:
        raise ArithmeticError(f"attention weights do not sum to 1: off by {off:.2g}")
    return weights


def resolve_index(size: int, index: int, key: str, what: str) -> int:
    """`index` counted from 0; raises `InputError` naming the param `key` where there is none such."""
    if not -size <= index < size:
        raise InputError(f"{key} = {index}: there are {size} {what}, 0 to {size - 1}, or -1 for the last")
    return index % size


def class_token_maps(weights: Tensor, prefix: int, grid: tuple[int, int]) -> Tensor:
    """What the class token gives to every patch, a map a head: `(B, heads, rows, columns)`.

    `weights` `(B, heads, tokens, tokens)` have `prefix` tokens before the patches, the class token first.
    """
    return check_rows(weights)[:, :, 0, prefix:].unflatten(-1, grid)


def rollout(blocks: Iterable[Tensor], prefix: int, grid: tuple[int, int]) -> Tensor:
    """Attention rollout (Abnar and Zuidema, 2020, "Quantifying attention flow in transformers"): `(B, rows, columns)`.

    Heads are averaged, half of every token stays its own for the residual, blocks are multiplied.
    """
    joint = None
    for weights in blocks:
        mean = check_rows(weights).mean(1)
        layer = (mean + torch.eye(mean.shape[-1], device=mean.device)) / 2
        joint = layer if joint is None else layer @ joint
    return joint[:, 0, prefix:].unflatten(-1, grid)


def upsampled(attention: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps `(..., rows, columns)` stretched bilinearly over an image: `(..., *size)`."""
    stacked = attention.reshape(1, -1, *attention.shape[-2:])
    wide = F.interpolate(stacked, size=size, mode="bilinear", align_corners=False)
    return wide.reshape(*attention.shape[:-2], *size)


def relative(attention: Tensor) -> Tensor:
    """Multiples of what every patch would get of an even spread, `(..., rows, columns)`: their mean is 1."""
    return attention / attention.mean((-2, -1), keepdim=True)


def density(attention: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map `(..., rows, columns)` spread over the pixels that its patches cover, `(..., *size)`; it sums to 1."""
    down, across = (
        ((np.arange(length) + 0.5) * cells / length).astype(int)
        for cells, length in zip(attention.shape[-2:], size, strict=True)
    )
    spread = attention[..., down[:, None], across]
    counts = np.bincount(down)[down][:, None] * np.bincount(across)[across]  # pixels of each pixel's patch
    spread = spread / counts
    return spread / spread.sum((-2, -1), keepdims=True)


def attention_mass(spread: np.ndarray, inside: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Percent of a `density` `(..., H, W)` that lies `inside`, of what lies on pixels that are `counted`."""
    on_it, all_of_it = (np.tensordot(spread, pixels.astype(spread.dtype), 2) for pixels in (inside, counted))
    return 100 * on_it / all_of_it


def peak_pixel(attention: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    """The pixel of an image in the middle of the patch that gets most of `attention` `(rows, columns)`."""
    place = np.unravel_index(int(attention.argmax()), attention.shape)
    row, column = (
        int((cell + 0.5) * length / cells) for cell, length, cells in zip(place, size, attention.shape, strict=True)
    )
    return row, column


def area(inside: np.ndarray, counted: np.ndarray) -> float:
    """Percent of the `counted` pixels that are `inside`: the mass there of attention that looks nowhere."""
    return float(100 * inside.sum() / counted.sum())
