"""Pretrain the embedded BLIP on generated scenes with noisy captions (`stages/data/scenes/web.py`).

BLIP's three losses: images and captions contrasted within the batch (ITC), captions matched to images against the
batch's most similar wrong caption (ITM), and the next word (LM). Text encoder and decoder share all weights but their
self-attention's, as in the paper (section 3.2). The image tower starts from the pretrained ViT. A killed run goes on
from its last evaluation and ends in the same weights.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipImageProcessorPil

from stages.core.stage import stage
from stages.core.train_state import TrainState
from stages.data.scenes import captions, web
from stages.data.scenes.captions import mentions
from stages.data.scenes.scene import CLASSES, COLORS, Scene, Style, draw_scene
from stages.models import blip, vit
from stages.params.pretrain_blip import PretrainBlip
from stages.params.section import load_section
from stages.pretraining.blip_card import Facts, write_card
from stages.pretraining.training import build_optimizers, fit
from stages.pretraining.vit_card import describe

FOLDER = Path("data/checkpoints/blip_scenes")
TOWER = Path("data/checkpoints/vit_scenes/model.safetensors")  # the image tower's start
RESUME = Path("data/resume/pretrain_blip.pt")
HELD_OUT = 500  # scenes by the held-out writers of the pretraining block
TOLD = 2  # captions of every scene: the decoder learns from both, the contrast from the first
MATCHED = 8  # images of a batch that are matched with a right and a wrong caption
LENGTH = 24  # tokens; no caption of scenes has more
PROMPT = "a picture of"

TOKENIZER = blip.word_tokenizer(web.vocabulary())

Teller = Callable[[np.random.Generator, Scene], str]


class CaptionedScenes(Dataset):
    """Scene `i` of a stream: image `(3, side, side)` uint8, token ids `(TOLD, LENGTH)`, its largest thing's looks.

    The looks are the indices of its class and of its color. `tell` captions a scene; `foreign` is the share of
    scenes whose captions belong to another one.
    """

    def __init__(
        self, writers: str, seed: int, first: int, count: int, style: Style, tell: Teller, foreign: float = 0.0
    ):
        self.writers, self.seed, self.first, self.count = writers, seed, first, count
        self.style, self.tell, self.foreign = style, tell, foreign

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, *self.writers.encode(), self.first + index])
        seen = draw_scene(rng, self.writers, self.style)
        told = draw_scene(rng, self.writers, self.style) if rng.random() < self.foreign else seen
        texts = [self.tell(rng, told) for _ in range(TOLD)]
        ids = TOKENIZER(texts, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
        largest = max(seen.objects, key=lambda thing: thing.radius)
        looks = torch.tensor([CLASSES.index(largest.name), list(COLORS).index(largest.color)])
        return torch.from_numpy(seen.image.transpose(2, 0, 1).copy()), ids, looks


class Pretrainer(nn.Module):
    """Both of transformers' classes on one image tower and shared text weights, and the contrast's temperature."""

    def __init__(self, architecture: vit.Architecture, recipe: PretrainBlip):
        super().__init__()
        config = blip.small_config(architecture, len(TOKENIZER), recipe.text_layers, recipe.projection)
        self.captioner = blip.build(BlipForConditionalGeneration, config)
        self.retriever = blip.build(BlipForImageTextRetrieval, config)
        self.retriever.vision_model = self.captioner.vision_model
        encoder, decoder = self.retriever.text_encoder, self.captioner.text_decoder.bert
        encoder.embeddings = decoder.embeddings
        for ours, theirs in zip(encoder.encoder.layer, decoder.encoder.layer, strict=True):
            for part in ("crossattention", "intermediate", "output"):
                setattr(ours, part, getattr(theirs, part))
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    @property
    def blocks(self) -> list[Tensor]:
        """Weights of the transformer layers, each once."""
        encoders = (self.captioner.vision_model, self.captioner.text_decoder.bert, self.retriever.text_encoder)
        return list({id(weight): weight for one in encoders for weight in one.encoder.parameters()}.values())

    def states(self, images: Tensor) -> Tensor:
        """`(B, 1 + patches, dim)` of uint8 `images`."""
        return self.captioner.vision_model(vit.normalize(images)).last_hidden_state

    def images_compared(self, states: Tensor) -> Tensor:
        """`(B, projection)`, of length 1, from the image tower's `states`."""
        return F.normalize(self.retriever.vision_proj(states[:, 0]), dim=-1)

    def texts_compared(self, ids: Tensor) -> Tensor:
        """`(B, projection)`, of length 1, from token ids `(B, LENGTH)`."""
        states = self.retriever.text_encoder(ids, attention_mask=_told(ids)).last_hidden_state
        return F.normalize(self.retriever.text_proj(states[:, 0]), dim=-1)

    def loss(self, images: Tensor, ids: Tensor) -> Tensor:
        """The sum of the three losses for uint8 `images` `(B, 3, side, side)` and `ids` `(B, TOLD, LENGTH)`."""
        states = self.states(images)
        similar = self.images_compared(states) @ self.texts_compared(ids[:, 0]).T
        return self._contrast(similar) + self._match(states, ids[:, 0], similar) + self._next_word(states, ids)

    def _contrast(self, similar: Tensor) -> Tensor:
        logits, right = similar * self.log_scale.exp().clamp(max=100), torch.arange(len(similar), device=similar.device)
        return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2

    def _match(self, states: Tensor, ids: Tensor, similar: Tensor) -> Tensor:
        some = min(MATCHED, len(ids))
        hardest = similar.detach()[:some].clone().fill_diagonal_(-2).argmax(1)
        pairs = torch.cat([ids[:some], ids[hardest]])
        read = self.retriever.text_encoder(
            pairs, attention_mask=_told(pairs), encoder_hidden_states=states[:some].repeat(2, 1, 1)
        )
        right = torch.arange(2 * some, device=ids.device) < some
        return F.cross_entropy(self.retriever.itm_head(read.last_hidden_state[:, 0]), right.long())

    def _next_word(self, states: Tensor, ids: Tensor) -> Tensor:
        flat = ids.flatten(0, 1)
        flat = flat[:, : int(_told(flat).sum(1).max())]
        started = torch.cat([torch.full_like(flat[:, :1], TOKENIZER.bos_token_id), flat[:, 1:]], dim=1)
        labels = started.masked_fill(flat == TOKENIZER.pad_token_id, -100)
        read = states.repeat_interleave(ids.shape[1], dim=0)
        return self.captioner.text_decoder(started, encoder_hidden_states=read, labels=labels).loss


def _told(ids: Tensor) -> Tensor:
    """The attention mask of token ids: 1 where there is a word."""
    return (ids != TOKENIZER.pad_token_id).long()


@torch.inference_mode()
def judge(model: Pretrainer, held_out: list[Tensor]) -> dict[str, float]:
    """On held-out scenes: R@1 from image to caption, and shares of greedy captions that name the largest thing right.

    `class named` asks for its class, `color named` for its class with its color.
    """
    images, ids, looks = held_out
    device = next(model.parameters()).device
    states = torch.cat([model.states(some.to(device)) for some in images.split(100)])
    similar = model.images_compared(states) @ model.texts_compared(ids[:, 0].to(device)).T
    first = (similar.diagonal()[:, None] <= similar).sum(1) == 1  # no other caption comes as close
    prompt = torch.tensor(TOKENIZER(PROMPT, add_special_tokens=False).input_ids)
    start = torch.cat([torch.tensor([TOKENIZER.bos_token_id]), prompt]).to(device)
    asked = {"min_length": 10, "max_length": 30, "do_sample": False}
    asked |= {"eos_token_id": TOKENIZER.sep_token_id, "pad_token_id": TOKENIZER.pad_token_id}
    starts = start.repeat(len(images), 1)
    told = model.captioner.text_decoder.generate(starts, encoder_hidden_states=states, **asked)
    texts = [TOKENIZER.decode(one, skip_special_tokens=True) for one in told]
    named, colored = [], []
    for text, (name, color) in zip(texts, looks.tolist(), strict=True):
        found = [mention for mention in mentions(text.split()) if mention.name == CLASSES[name]]
        named.append(bool(found))
        colored.append(any(mention.color == list(COLORS)[color] for mention in found))
    return {
        "R@1": first.float().mean().item(),
        "class named": float(np.mean(named)),
        "color named": float(np.mean(colored)),
    }


def hold_out(recipe: PretrainBlip, style: Style, tell: Teller) -> list[Tensor]:
    """`HELD_OUT` scenes of a style, as `CaptionedScenes` gives them, stacked."""
    scenes = CaptionedScenes("pretrain_val", recipe.seed, 0, HELD_OUT, style, tell)
    return next(iter(DataLoader(scenes, len(scenes), num_workers=1)))


def pretrain(recipe: PretrainBlip, device: torch.device) -> tuple[Pretrainer, TrainState]:
    """Train as `recipe` says, from the last saved evaluation where there is one of the same recipe."""
    torch.manual_seed(recipe.seed)
    model = Pretrainer(vit.read_architecture(TOWER), recipe)
    blip.start_from_vit(model.captioner, load_file(TOWER))
    model.to(device)
    held_out = hold_out(recipe, web.STYLE, web.web_caption)
    progress = fit(
        recipe,
        "pretrain_blip",
        model,
        build_optimizers(model, model.blocks, recipe),
        lambda first, count: CaptionedScenes(
            "pretrain", recipe.seed, first, count, web.STYLE, web.web_caption, web.Noise.foreign
        ),
        lambda batch: model.loss(batch[0], batch[1]),
        lambda: judge(model, held_out),
        recipe.model_dump() | {"tower": hashlib.sha256(TOWER.read_bytes()).hexdigest()},
        RESUME,
    )
    return model.eval(), progress


def ship(model: Pretrainer, recipe: PretrainBlip, progress: TrainState, machine: str) -> None:
    """Judge a pretrained model in both styles; write weights, tokenizer, config and card."""
    judged = {
        "the style it was pretrained on": judge(model, hold_out(recipe, web.STYLE, web.web_caption)),
        "the task's style": judge(
            model, hold_out(recipe, Style(), lambda rng, seen: captions.scene_captions(rng, seen)[0])
        ),
    }
    config = model.captioner.config
    side = config.vision_config.image_size
    processor = BlipImageProcessorPil(image_mean=vit.MEAN, image_std=vit.STD, size={"height": side, "width": side})
    blip.save(FOLDER, model.captioner, model.retriever, TOKENIZER, processor)
    parameters = sum(weight.numel() for weight in model.parameters())
    write_card(FOLDER, recipe, Facts(config, parameters, HELD_OUT, machine), progress, judged)


def main() -> None:
    recipe = load_section(PretrainBlip, "pretrain_blip")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, progress = pretrain(recipe, device)
    ship(model, recipe, progress, describe(device))
    RESUME.unlink(missing_ok=True)


if __name__ == "__main__":
    with stage("pretrain_blip"):
        main()
