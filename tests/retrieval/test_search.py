"""A sentence finds the images whose vectors are closest to its own."""

import numpy as np
import pytest
from conftest import untrained_blip
from PIL import Image
from torch.nn import functional as F

from stages.image_text.pixels import BATCH
from stages.image_text.towers import load_towers
from stages.models.blip import WEIGHTS
from stages.retrieval.projections import load_projections
from stages.retrieval.search import search_images


def test_a_sentence_finds_images_by_the_projections_of_blip(tmp_path):
    untrained_blip(tmp_path)
    towers = load_towers(tmp_path)
    rng = np.random.default_rng(0)
    count = BATCH + 2  # more than a batch
    images = [Image.fromarray(rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)) for _ in range(count)]
    states = towers.encode_images(images)[:, 0]
    names = [f"image {number}" for number in range(count)]
    projections = load_projections(tmp_path / WEIGHTS)
    results = search_images("a red circle", towers, projections, states, names, count=3)

    image_vectors = F.normalize(towers.model.vision_proj(states), dim=-1)
    text_vector = F.normalize(towers.model.text_proj(towers.text_states(["a red circle"])), dim=-1)
    similarities = (image_vectors @ text_vector[0]).tolist()
    assert [similarity for similarity, _ in results] == pytest.approx(sorted(similarities, reverse=True)[:3])
    assert [similarity for similarity, _ in results] == pytest.approx(
        [similarities[names.index(name)] for _, name in results]
    )
