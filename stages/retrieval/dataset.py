"""Cached class-token states of an experiment, to train and evaluate projections on."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.core.stage import InputError
from stages.data import manifest as manifests
from stages.data.manifest import Manifest, Row
from stages.features.vectors import read_vectors
from stages.image_text import REFERENCE_SEED, RETRIEVAL_VECTORS
from stages.image_text.reference_caption import reference_index
from stages.models.compute import get_device
from stages.params.experiment import Experiment
from stages.retrieval.projections import Projections, load_projections
from stages.retrieval.recall import compute_ranks, nearest_neighbors, recall_summary
from stages.retrieval.training import TrainPairs

NEAREST = 5  # images recorded for every caption


def recall_metrics(ranks: dict[str, np.ndarray]) -> dict[str, float]:
    """Metrics of ranks by direction, as `ValPairs.ranks` returns them."""
    return {
        f"{direction}_{key}": value
        for direction, direction_ranks in ranks.items()
        for key, value in recall_summary(direction_ranks).items()
    }


@dataclass(frozen=True)
class ValPairs:
    """Validation images and the reference caption of each: float32 states `images` and `texts`, `(N, dim)` each."""

    image_ids: list[str]
    captions: list[str]
    images: Tensor
    texts: Tensor

    @torch.inference_mode()
    def ranks(self, projections: Projections) -> dict[str, np.ndarray]:
        """Ranks `(N,)` by direction."""
        images = projections.images(self.images)
        texts = projections.texts(self.texts)
        numbers = torch.arange(len(self.image_ids), device=images.device)  # caption i belongs to image i alone
        return {
            "image_to_text": compute_ranks(images, texts, numbers, numbers),
            "text_to_image": compute_ranks(texts, images, numbers, numbers),
        }

    def metrics(self, projections: Projections) -> dict[str, float]:
        """Recall at 1, 5 and 10, median and mean rank in both directions."""
        return recall_metrics(self.ranks(projections))

    @torch.inference_mode()
    def nearest_images(self, projections: Projections) -> list[list[str]]:
        """IDs of the `NEAREST` images most similar to each caption."""
        nearest = nearest_neighbors(projections.texts(self.texts), projections.images(self.images), NEAREST)
        return [[self.image_ids[index] for index in row] for row in nearest.tolist()]


class RetrievalData:
    """The output of `encode_image_text`. Raises `InputError` if it belongs to other params or another manifest."""

    def __init__(self, experiment: Experiment, manifest: Manifest):
        expected = {"backbone": experiment.active.blip, "manifest": manifests.manifest_hash()}
        probability = str(experiment.retrieval.augment_probability)
        train = read_vectors(RETRIEVAL_VECTORS / "train.parquet", augment_probability=probability, **expected)
        val = read_vectors(RETRIEVAL_VECTORS / "val.parquet", **expected)
        captions = read_vectors(RETRIEVAL_VECTORS / "captions.parquet", **expected)
        self.metadata = train.metadata
        self.device = get_device()

        views = experiment.retrieval.views
        cached_views = len(set(train.indices))
        if cached_views != views:
            problem = f"{RETRIEVAL_VECTORS}/train.parquet holds {cached_views}; run `dvc repro`"
            raise InputError(f"retrieval.views = {views}: {problem}")
        val_rows = manifest.split("val")
        val_ids = [row.image_id for row in val_rows]
        if val.image_ids != val_ids:
            raise InputError(f"{RETRIEVAL_VECTORS}/val.parquet holds other images than the manifest; run `dvc repro`")

        caption_keys = zip(captions.image_ids, captions.indices, strict=True)
        caption_index = {key: index for index, key in enumerate(caption_keys)}
        seed = experiment.seed_for(REFERENCE_SEED)

        def reference_states(rows: tuple[Row, ...]) -> Tensor:
            """States `(N, dim)` of the rows' reference captions."""
            indices = [caption_index[row.image_id, reference_index(row, seed)] for row in rows]
            return captions.values[indices].float().to(self.device)

        # The table has all images of the first view, then of the second: (views * N, dim) to (views, N, dim).
        train_states = train.values.float().unflatten(0, (views, -1)).to(self.device)
        self.pairs = TrainPairs(train_states, reference_states(manifest.split("train")))
        references = [row.captions[reference_index(row, seed)] for row in val_rows]
        self.val = ValPairs(val_ids, references, val.values.float().to(self.device), reference_states(val_rows))

    def provided_projections(self) -> Projections:
        """The projections that BLIP came with."""
        return load_projections(RETRIEVAL_VECTORS / "projections.safetensors").to(self.device)

    def random_projections(self, seed: int) -> Projections:
        """Randomly initialized projections of the same shape."""
        provided = self.provided_projections()
        image_dim = provided.vision_proj.in_features
        text_dim = provided.text_proj.in_features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Projections(image_dim, text_dim, provided.vision_proj.out_features).to(self.device)
