"""Compare tensors that two implementations compute, up to the rounding of their float type."""

import torch
from torch import Tensor

ROUNDINGS = 10_000  # of a small network: sums of up to 2048 terms, and a few roundings in each of dozens of layers


def assert_close(actual: Tensor, expected: Tensor, roundings: int = ROUNDINGS) -> None:
    """Assert that two tensors differ by rounding alone, relative to the largest value.

    One operation rounds by up to eps (1.2e-7 in float32, 2.2e-16 in float64) of its result, and errors of random sign
    add up with the square root of their number: the tolerance is eps * sqrt(roundings) * max|expected|. The order of
    additions differs between CPUs, and with it each single error. Compare in float64 where the code allows it: there
    the default tolerance is 2.2e-14 of the largest value.
    """
    assert actual.dtype == expected.dtype
    tolerance = torch.finfo(expected.dtype).eps * roundings**0.5 * expected.abs().max().item()
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)
