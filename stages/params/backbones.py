"""Params of the backbones that are compared with the profile's own, under the same segmentation heads."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StrictBool

from stages.params.model_source import ModelSource
from stages.params.section import Between, Section, expects, no_duplicates

OWN_SOURCES = ("backbone", "blip")  # the models of the active profile under these keys
LAST = 4  # blocks of `last4`

Blocks = Annotated[
    list[Annotated[int, Between(-1000, 1000)]],
    Field(min_length=1),
    AfterValidator(no_duplicates),
    expects("a list of different block indices, from 0, or from -1 for the last"),
]


class ComparedBackbone(Section):
    """A frozen ViT whose patch tokens other than Table 1's heads are trained on.

    `source` is "backbone" for the profile's own, "blip" for the image tower of its BLIP, or a ViT as the profile may
    name one. `layers`: the output of the last block, of the last four or of those listed, concatenated. With `random`,
    the weights are random: the control that shows what pretraining adds.
    """

    source: ModelSource
    layers: Literal["last", "last4"] | Blocks = "last"
    random: StrictBool = False

    def block_indices(self, depth: int) -> list[int] | None:
        """The blocks whose outputs are used, of a ViT with `depth` blocks, in ascending order; None for its output.

        Raises `ValueError` if it has no such block.
        """
        if self.layers == "last":
            return None
        blocks = list(range(-LAST, 0)) if self.layers == "last4" else self.layers
        for block in blocks:
            if not -depth <= block < depth:
                raise ValueError(f"layers: no block {block}; the model has {depth}")
        indices = sorted({block % depth for block in blocks})
        if len(indices) < len(blocks):
            raise ValueError(f"layers: a block is listed twice; the model has {depth}")
        return indices

    def describe_layers(self) -> str:
        """`last`, `last4` or the indices: `0, 5, 11`."""
        return self.layers if isinstance(self.layers, str) else ", ".join(map(str, self.layers))
