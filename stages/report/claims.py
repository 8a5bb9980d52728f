"""A statement of the source report beside the difference found here."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from stages.core.bootstrap import confidence_interval


@dataclass(frozen=True)
class Claim:
    """What the report says of run `first` against run `second`, and the sign of the difference that it says it of."""

    said: str
    first: str
    second: str
    sign: int

    def line(self, there: float | str, found: float, draws: np.ndarray) -> str:
        """The claim as a list item; `draws` are bootstrap draws of the difference `found`, paired image by image.

        `there` is the difference in the report, in its words where it gives no number.

        The verdict is about the direction alone; how large a difference is, its number says.
        """
        low, high = confidence_interval(draws)
        direction = "the same direction" if found * self.sign > 0 else "the other direction"
        verdict = "no difference that the images could not explain" if low <= 0 <= high else direction
        reported = there if isinstance(there, str) else f"{there:+.2f}"
        return (
            f"- *{self.said}* ({reported} in the report): {found:+.2f} here, "
            f"95 % interval {low:+.2f} to {high:+.2f}: {verdict}."
        )


def answerable(claims: Iterable[Claim], names: Collection[str]) -> list[Claim]:
    """The claims both of whose runs are among `names`."""
    return [claim for claim in claims if claim.first in names and claim.second in names]
