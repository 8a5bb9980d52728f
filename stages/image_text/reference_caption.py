"""The reference caption of an image, where the original has one caption per image."""

import numpy as np

from stages.data.manifest import Row


def reference_index(row: Row, seed: int) -> int:
    """Return a random caption index that depends only on `seed` and the image ID, not on other images."""
    return int(np.random.default_rng([seed, *row.image_id.encode()]).integers(len(row.captions)))
