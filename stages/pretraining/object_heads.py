"""What captions say of a scene's objects, as labels, and a loss that asks the cells of a feature grid for it.

A caption such as "a red circle at the top left" names classes, their colors and their places: image-level labels,
without masks. Shared by the pretrainings of the ViT, whose cells are patches, and of CATR, with those of its ResNet.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.core import processes
from stages.data.scenes.captions import grid_cell
from stages.data.scenes.scene import CLASSES, COLORS, SceneObject

NAMES = (*CLASSES[1:], *COLORS)  # of the 28 presence labels; class 0 is the background
FOREGROUND = len(CLASSES) - 1
PLACES = 9
ABSENT = -100  # the place and the color of a class that is not in a scene


class Labels(NamedTuple):
    """What is in a scene: presence of `NAMES` `(..., 28)`, 0 or 1; and place and color `(..., 20)` of each class.

    Places are numbered by row of the 3x3 grid, colors in the order of `COLORS`; both are `ABSENT` for absent classes.
    """

    present: Tensor
    places: Tensor
    colors: Tensor


class ObjectPredictions(NamedTuple):
    """Logits for each class by ninth of the image, place and color: `(B, 20, 9)`, `(B, 20, 9)` and `(B, 20, 8)`.

    A class is present if it is in any ninth: its logit of presence is the logsumexp of its ninths.
    """

    ninths: Tensor
    places: Tensor
    colors: Tensor


def label_objects(objects: tuple[SceneObject, ...], side: int) -> Labels:
    """The labels of a scene of `side` pixels with these objects."""
    names = {scene_object.name for scene_object in objects} | {scene_object.color for scene_object in objects}
    places = torch.full((FOREGROUND,), ABSENT)
    colors = torch.full((FOREGROUND,), ABSENT)
    for scene_object in objects:
        row, column = grid_cell(scene_object, side)
        places[scene_object.label - 1] = 3 * row + column
        colors[scene_object.label - 1] = list(COLORS).index(scene_object.color)
    return Labels(torch.tensor([float(name in names) for name in NAMES]), places, colors)


class ObjectHeads(nn.Module):
    """Three linear layers that predict classes, their places and their colors from a grid of features.

    Only pretraining needs them; they are not exported.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.class_head = nn.Linear(dim, FOREGROUND)
        # logsumexp over 100 cells adds log(100) = 4.6: presence starts near its prior, sigmoid(-6 + 4.6) = 0.2.
        nn.init.constant_(self.class_head.bias, -6.0)
        self.place_head = nn.Linear(dim, PLACES)
        self.color_head = nn.Linear(dim, len(COLORS))

    def forward(self, features: Tensor) -> ObjectPredictions:
        """The predictions for `features` `(B, rows, columns, dim)`.

        A class's place and color are predicted from the mean of the cells, weighted by the softmax of its own logits.
        These weights are constants to the place and the color: else both would pull a class's logits toward whichever
        cells tell them best.
        """
        _, rows, columns, _ = features.shape
        cells = features.flatten(1, 2)
        logits = self.class_head(cells).transpose(1, 2)  # (B, 20, cells)
        class_means = logits.detach().softmax(2) @ cells  # (B, 20, dim)
        ninths = _ninth_of_cell(rows, columns).to(features.device)
        outside = torch.arange(PLACES, device=features.device)[:, None] != ninths  # (9, cells)
        ninth_logits = logits[:, :, None].masked_fill(outside, -torch.inf).logsumexp(3)
        return ObjectPredictions(ninth_logits, self.place_head(class_means), self.color_head(class_means))


def presence_loss(predicted: ObjectPredictions, labels: Labels) -> Tensor:
    """The mean binary cross entropy of the presence of classes: multiple-instance learning over cells."""
    present = labels.present[:, :FOREGROUND]
    return F.binary_cross_entropy_with_logits(predicted.ninths.logsumexp(2), present)


def object_loss(predicted: ObjectPredictions, labels: Labels) -> Tensor:
    """This process's part of the cross entropies of ninth, place and color: sums of means over all objects."""
    objects = processes.all_reduce((labels.places != ABSENT).sum())
    total = (
        _sum_over_objects(predicted.ninths, labels.places)
        + _sum_over_objects(predicted.places, labels.places)
        + _sum_over_objects(predicted.colors, labels.colors)
    )
    return total / objects


def _ninth_of_cell(rows: int, columns: int) -> Tensor:
    """The ninth of the image that each cell's center lies in, numbered like places: `(rows * columns,)`."""
    row = (6 * torch.arange(rows) + 3) // (2 * rows)
    column = (6 * torch.arange(columns) + 3) // (2 * columns)
    return (3 * row[:, None] + column).flatten()


def _sum_over_objects(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross entropy of `logits` `(B, 20, n)`, summed over the classes in each scene; `labels` are `(B, 20)`."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=ABSENT, reduction="sum")
