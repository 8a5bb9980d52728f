"""Pretrain the shipped BLIP on generated scenes with noisy captions (`stages/data/scenes/web.py`).

The loss is the sum of BLIP's three: image-text contrastive (ITC) over the batch, image-text matching (ITM) against the
most similar wrong caption of the batch, and language modeling (LM). Text encoder and decoder share all weights but
their self-attention, as in the paper (section 3.2). The image tower starts from the pretrained ViT. An interrupted run
resumes from its last evaluation and ends in the same weights. Several processes share the training under `torchrun`
(docs/distributed.md).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipImageProcessorPil

from stages.core import processes
from stages.core.hashes import file_sha256
from stages.core.train_state import TrainState
from stages.data.scenes import web
from stages.data.scenes.scene import Scene, SceneObject, Style
from stages.models import blip, vit
from stages.models.compute import get_device
from stages.params.pretrain_blip import PretrainBlip
from stages.params.section import load_section
from stages.pretraining.batch_norm import share_batch_norm
from stages.pretraining.blip_card import write_card
from stages.pretraining.captioned_scenes import (
    MAX_LENGTH,
    MIN_LENGTH,
    PROMPT,
    STYLES,
    TOKENIZER,
    CaptionFunction,
    compute_metrics,
    draw_example,
    web_examples,
)
from stages.pretraining.card import CardInfo, describe_device
from stages.pretraining.training import build_optimizers, fit

FOLDER = Path("data/checkpoints/blip_scenes")
TOWER = Path("data/checkpoints/vit_scenes/model.safetensors")  # initial weights of the image tower
RESUME = Path("data/resume/pretrain_blip.pt")
HELD_OUT = 500  # scenes with the held-out digits of the pretraining block
MATCHED_IMAGES = 8  # per batch, each with a right and a wrong caption


def load_example(
    index: int, writers: str, seed: int, style: Style, caption: CaptionFunction, foreign: float
) -> tuple[Tensor, Tensor]:
    """The image `(3, side, side)` uint8 and token IDs of `draw_example`."""
    scene, ids = draw_example(index, writers, seed, style, caption, foreign)
    return _as_tensor(scene), ids


def _as_tensor(scene: Scene) -> Tensor:
    return torch.from_numpy(scene.image.transpose(2, 0, 1).copy())


class Pretrainer(nn.Module):
    """Both BLIP classes of transformers on one image tower and shared text weights, and the ITC temperature."""

    def __init__(self, architecture: vit.Architecture, recipe: PretrainBlip):
        super().__init__()
        config = blip.small_config(architecture, len(TOKENIZER), recipe.text_layers, recipe.projection)
        self.captioner = blip.build(BlipForConditionalGeneration, config)
        self.retriever = blip.build(BlipForImageTextRetrieval, config)
        self.retriever.vision_model = self.captioner.vision_model
        encoder = self.retriever.text_encoder
        decoder = self.captioner.text_decoder.bert
        encoder.embeddings = decoder.embeddings
        for encoder_layer, decoder_layer in zip(encoder.encoder.layer, decoder.encoder.layer, strict=True):
            for part in ("crossattention", "intermediate", "output"):
                setattr(encoder_layer, part, getattr(decoder_layer, part))
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())  # a temperature of 0.07, as in CLIP and BLIP

    @property
    def block_weights(self) -> list[Tensor]:
        """The weights of all transformer layers, shared ones once."""
        models = (self.captioner.vision_model, self.captioner.text_decoder.bert, self.retriever.text_encoder)
        weights = [weight for model in models for weight in model.encoder.parameters()]
        return list({id(weight): weight for weight in weights}.values())

    def encode_images(self, images: Tensor) -> Tensor:
        """The image tower's states `(B, 1 + patches, dim)` for uint8 `images`."""
        return self.captioner.vision_model(vit.normalize(images)).last_hidden_state

    def project_images(self, states: Tensor) -> Tensor:
        """Unit vectors `(B, projection)` from the image tower's `states`."""
        return F.normalize(self.retriever.vision_proj(states[:, 0]), dim=-1)

    def project_texts(self, ids: Tensor) -> Tensor:
        """Unit vectors `(B, projection)` from token IDs `(B, tokens)`."""
        states = self.retriever.text_encoder(ids, attention_mask=_attention_mask(ids)).last_hidden_state
        return F.normalize(self.retriever.text_proj(states[:, 0]), dim=-1)

    def loss(self, images: Tensor, ids: Tensor, batch_size: int) -> Tensor:
        """The sum of the three losses, for uint8 `images` and `ids` of `load_example`, `(B, captions, tokens)`.

        The decoder learns from all captions of a scene, the other losses from the first.

        Of several processes, each has its share of the `batch_size` images; its part of the loss is returned.
        """
        states = self.encode_images(images)
        first = ids[:, 0]
        image_vectors = processes.all_gather(self.project_images(states), batch_size)
        text_vectors = processes.all_gather(self.project_texts(first), batch_size)
        similarity = image_vectors @ text_vectors.T  # (batch_size images, batch_size captions), in every process
        itc_loss = self._itc_loss(similarity) / processes.count()  # of the whole batch, so each counts as one part
        itm_loss = self._itm_loss(states, processes.all_gather(first, batch_size), similarity)
        return itc_loss + itm_loss + self._lm_loss(states, ids)

    def _itc_loss(self, similarity: Tensor) -> Tensor:
        logits = similarity * self.log_scale.exp().clamp(max=100)  # the limit is CLIP's, for stability
        labels = torch.arange(len(similarity), device=similarity.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    def _itm_loss(self, states: Tensor, ids: Tensor, similarity: Tensor) -> Tensor:
        """Of this process's images among the first `MATCHED_IMAGES`; `ids` are those of the whole batch."""
        matched_images = min(MATCHED_IMAGES, len(ids))
        own = processes.share(torch.arange(matched_images, device=ids.device))
        count = len(own)
        if not count:
            return states.new_zeros(())
        # The diagonal has the right captions: -2 is less than any cosine, so that none of them is chosen.
        hardest = similarity.detach()[:matched_images].clone().fill_diagonal_(-2).argmax(1)
        texts = torch.cat([ids[own], ids[hardest[own]]])
        states = states[:count].repeat(2, 1, 1)  # (2 * count, 1 + patches, dim), in the order of the texts
        outputs = self.retriever.text_encoder(
            texts, attention_mask=_attention_mask(texts), encoder_hidden_states=states
        )
        matched = torch.arange(2 * count, device=ids.device) < count
        loss = F.cross_entropy(self.retriever.itm_head(outputs.last_hidden_state[:, 0]), matched.long())
        return loss * (count / matched_images)

    def _lm_loss(self, states: Tensor, ids: Tensor) -> Tensor:
        states = states.repeat_interleave(ids.shape[1], dim=0)  # (B * captions, 1 + patches, dim)
        ids = ids.flatten(0, 1)
        ids = ids[:, : int(_attention_mask(ids).sum(1).max())]  # without the columns that are padding in every row
        # The decoder starts with [DEC] where the tokenizer writes [CLS].
        start = torch.full_like(ids[:, :1], TOKENIZER.bos_token_id)
        inputs = torch.cat([start, ids[:, 1:]], dim=1)
        labels = inputs.masked_fill(ids == TOKENIZER.pad_token_id, -100)  # -100: ignored by the loss
        loss = self.captioner.text_decoder(inputs, encoder_hidden_states=states, labels=labels).loss
        words = (labels[:, 1:] != -100).sum()  # the loss is their mean, and processes have different numbers of them
        return loss * (words / processes.all_reduce(words))


def _attention_mask(ids: Tensor) -> Tensor:
    """1 for words, 0 for padding."""
    return (ids != TOKENIZER.pad_token_id).long()


@dataclass(frozen=True)
class HeldOut:
    """Held-out scenes: images `(N, 3, side, side)` uint8, token IDs of one caption each, and their objects."""

    images: Tensor
    ids: Tensor
    objects: tuple[tuple[SceneObject, ...], ...]


@torch.inference_mode()
def evaluate(model: Pretrainer, held_out: HeldOut) -> dict[str, float]:
    """`blip_card.METRICS` on held-out scenes."""
    device = next(model.parameters()).device
    count = len(held_out.images)
    states = torch.cat([model.encode_images(batch.to(device)) for batch in processes.share(held_out.images).split(100)])
    image_vectors = processes.all_gather(model.project_images(states), count)
    text_vectors = processes.all_gather(model.project_texts(processes.share(held_out.ids).to(device)), count)
    similarity = image_vectors @ text_vectors.T
    # Ties count against the model: a hit has no other caption that is at least as similar.
    hits = (similarity.diagonal()[:, None] <= similarity).sum(1) == 1
    generated = processes.all_gather(_generate(model, states), count)
    recall = 100 * hits.double().mean().item()
    return {"R@1": recall} | compute_metrics(generated, held_out.objects, held_out.images.shape[-1])


def _generate(model: Pretrainer, states: Tensor) -> Tensor:
    """Token IDs `(B, MAX_LENGTH)` of greedy captions that start with `PROMPT`, one per image in `states`."""
    prompt = torch.tensor(TOKENIZER(PROMPT, add_special_tokens=False).input_ids)
    start = torch.cat([torch.tensor([TOKENIZER.bos_token_id]), prompt]).to(states.device)
    decoder: Any = model.captioner.text_decoder  # transformers' stubs do not allow `generate` on this class
    ids = decoder.generate(
        start.repeat(len(states), 1),
        encoder_hidden_states=states,
        min_length=MIN_LENGTH,
        max_length=MAX_LENGTH,
        do_sample=False,
        eos_token_id=TOKENIZER.sep_token_id,
        pad_token_id=TOKENIZER.pad_token_id,
    )
    # Processes stop at their own longest caption.
    return F.pad(ids, (0, MAX_LENGTH - ids.shape[1]), value=TOKENIZER.pad_token_id)


def load_held_out(recipe: PretrainBlip, style: Style, caption: CaptionFunction) -> HeldOut:
    """`HELD_OUT` scenes of a style."""
    examples = [draw_example(index, "pretrain_val", recipe.seed, style, caption) for index in range(HELD_OUT)]
    images = torch.stack([_as_tensor(scene) for scene, _ in examples])
    return HeldOut(images, torch.stack([ids[0] for _, ids in examples]), tuple(scene.objects for scene, _ in examples))


def pretrain(recipe: PretrainBlip, device: torch.device) -> tuple[Pretrainer, TrainState]:
    """Train by `recipe`, resuming from the last evaluation of an interrupted run with the same recipe and ViT."""
    torch.manual_seed(recipe.seed)
    model = Pretrainer(vit.read_architecture(TOWER), recipe)
    blip.start_from_vit(model.captioner, load_file(TOWER))
    model.to(device)
    share_batch_norm(model)
    held_out = load_held_out(recipe, web.STYLE, web.web_caption)
    state = fit(
        recipe,
        "pretrain_blip",
        model,
        build_optimizers(model, model.block_weights, recipe),
        web_examples(load_example, recipe.seed),
        lambda batch: model.loss(batch[0], batch[1], recipe.batch_size),
        lambda: evaluate(model, held_out),
        recipe.model_dump() | {"tower": file_sha256(TOWER)},
        RESUME,
    )
    return model.eval(), state


def export(model: Pretrainer, recipe: PretrainBlip, state: TrainState, machine: str) -> None:
    """Evaluate a pretrained model in both styles; write weights, tokenizer, config and card.

    Several processes share the evaluation; the main one writes.
    """
    results = {name: evaluate(model, load_held_out(recipe, *style)) for name, style in STYLES.items()}
    if not processes.is_main():
        return
    config = model.captioner.config
    vision_config: Any = config.vision_config
    size = {"height": vision_config.image_size, "width": vision_config.image_size}
    processor = BlipImageProcessorPil(image_mean=vit.MEAN, image_std=vit.STD, size=size)
    blip.save(FOLDER, model.captioner, model.retriever, TOKENIZER, processor)
    parameters = sum(weight.numel() for weight in model.parameters())
    write_card(FOLDER, recipe, config, CardInfo(parameters, HELD_OUT, machine), state, results)


def main() -> None:
    recipe = load_section(PretrainBlip, "pretrain_blip")
    device = get_device()
    model, state = pretrain(recipe, device)
    export(model, recipe, state, describe_device(device))
    if processes.is_main():
        RESUME.unlink(missing_ok=True)


if __name__ == "__main__":
    with processes.training_stage("pretrain_blip"):
        main()
