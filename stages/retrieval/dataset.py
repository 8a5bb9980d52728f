"""The cached states of one experiment, as projections train and are judged on them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stages.core.stage import InputError
from stages.data import manifest as manifests
from stages.data.manifest import Manifest, Row
from stages.features.vectors import Vectors, read_vectors
from stages.image_text import REFERENCE_SEED, RETRIEVAL_VECTORS
from stages.image_text.reference_caption import reference_index
from stages.models.compute import get_device
from stages.params.experiment import Experiment
from stages.retrieval.projections import Projections, load_projections
from stages.retrieval.recall import compute_ranks, nearest_neighbors, recall_summary
from stages.retrieval.training import Pairs

SHOWN = 5  # images kept for every caption, the most similar first


@dataclass(frozen=True)
class ValPairs:
    """Validation images and the caption drawn for each: `images` `(N, dim)`, `texts` `(N, dim)`, float32."""

    image_ids: list[str]
    captions: list[str]
    images: Tensor
    texts: Tensor

    @cached_property
    def owners(self) -> Tensor:
        """Every image has one caption, and every caption one image."""
        return torch.arange(len(self.image_ids), device=self.images.device)

    @torch.inference_mode()
    def ranked(self, projections: Projections) -> dict[str, object]:
        """Ranks by direction, `(N,)` each, under the names that metrics carry."""
        images, texts = projections.images(self.images), projections.texts(self.texts)
        return {
            "image_to_text": compute_ranks(images, texts, self.owners, self.owners),
            "text_to_image": compute_ranks(texts, images, self.owners, self.owners),
        }

    def metrics(self, projections: Projections) -> dict[str, float]:
        """Recall at 1, 5, 10, median and mean rank in both directions."""
        return {
            f"{direction}_{key}": value
            for direction, found in self.ranked(projections).items()
            for key, value in recall_summary(found).items()
        }

    @torch.inference_mode()
    def nearest_images(self, projections: Projections) -> list[list[str]]:
        """Ids of the `SHOWN` images nearest to each caption."""
        places = nearest_neighbors(projections.texts(self.texts), projections.images(self.images), SHOWN)
        return [[self.image_ids[place] for place in row] for row in places.tolist()]


class RetrievalData:
    """What `encode_image_text` left for this experiment; raises `InputError` where it is of another one."""

    def __init__(self, experiment: Experiment, manifest: Manifest):
        expected = {"backbone": experiment.active.blip, "manifest": manifests.manifest_hash()}
        train, val, captions = (
            read_vectors(RETRIEVAL_VECTORS / f"{name}.parquet", **expected) for name in ("train", "val", "captions")
        )
        self.metadata = train.metadata
        self.device = get_device()
        self._place = {key: at for at, key in enumerate(zip(captions.image_ids, captions.indices, strict=True))}
        self._seed, self._captions = experiment.seed_for(REFERENCE_SEED), captions
        self.pairs = Pairs(self._views(train, experiment.retrieval.views), self._texts(manifest.split("train")))
        rows = manifest.split("val")
        told = [row.captions[reference_index(row, self._seed)] for row in rows]
        ids = [row.image_id for row in rows]
        if val.image_ids != ids:
            raise InputError(f"{RETRIEVAL_VECTORS}/val.parquet holds other images than the manifest; run `dvc repro`")
        self.val = ValPairs(ids, told, val.values.float().to(self.device), self._texts(rows))

    def _views(self, train: Vectors, views: int) -> Tensor:
        """`(views, N, dim)`: the table goes view by view."""
        found = len(set(train.indices))
        if found != views:
            raise InputError(
                f"retrieval.views = {views}: {RETRIEVAL_VECTORS}/train.parquet holds {found}; run `dvc repro`"
            )
        return train.values.float().unflatten(0, (views, -1)).to(self.device)

    def _texts(self, rows: tuple[Row, ...]) -> Tensor:
        """State of the caption drawn for every row, `(N, dim)`."""
        places = [self._place[row.image_id, reference_index(row, self._seed)] for row in rows]
        return self._captions.values[places].float().to(self.device)

    def provided(self) -> Projections:
        """The projections that BLIP came with."""
        return load_projections(RETRIEVAL_VECTORS / "projections.safetensors").to(self.device)

    def fresh(self, seed: int) -> Projections:
        """Random projections of the same shape."""
        shaped = self.provided()
        sizes = shaped.vision_proj.in_features, shaped.text_proj.in_features, shaped.vision_proj.out_features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Projections(*sizes).to(self.device)
