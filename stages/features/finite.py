"""The check of everything that an extraction stores: half-precision values are finite."""

from torch import Tensor

from stages.core.finite import is_finite
from stages.core.messages import quote_value
from stages.core.stage import InputError

LARGEST = 65504  # of float16; larger values become infinite


def check_finite(values: Tensor, model: str, content: str, precision: str | None = None) -> None:
    """Raise `InputError` naming the model if half-precision `values` are not finite; `content` says what they are."""
    if is_finite(values):
        return
    advice = "check its weights"
    if precision not in (None, "float32"):
        advice += f", or set compute.precision to float32 (now {precision})"
    problem = f"NaN, infinite or too large for float16 (at most {LARGEST})"
    raise InputError(f"model {quote_value(model)}: {content}: values are {problem}; {advice}")
