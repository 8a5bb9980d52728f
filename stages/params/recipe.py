"""Params that the pretrainings of the embedded profile share."""

from stages.params.section import BatchSize, Count, Rate, Section, Seed, Weight


class Recipe(Section):
    """`muon_lr` is for the weight matrices of the blocks (Muon), `lr` for all other weights (AdamW).

    `warmup` is in batches.
    """

    seed: Seed
    images: Count
    batch_size: BatchSize
    lr: Rate
    muon_lr: Rate
    weight_decay: Weight
    warmup: Count
