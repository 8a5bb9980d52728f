"""How the embedded ViT is pretrained."""

from stages.params.section import Count, Rate, Section, Seed, Weight


class Pretrain(Section):
    """`muon_lr` is for the blocks' matrices (Muon), `lr` for everything else (AdamW)."""

    seed: Seed
    images: Count
    batch_size: Count
    lr: Rate
    muon_lr: Rate
    weight_decay: Weight
    warmup: Count
