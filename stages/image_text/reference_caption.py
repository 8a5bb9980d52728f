"""Which of an image's captions stands for it, where the protocol has one caption an image."""

import numpy as np

from stages.data.manifest import Row


def reference_index(row: Row, seed: int) -> int:
    """A caption's number, drawn by the image's id alone, so that other images do not change it."""
    return int(np.random.default_rng([seed, *row.image_id.encode()]).integers(len(row.captions)))
