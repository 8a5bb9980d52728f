"""Images and captions through BLIP's two towers, once: what captioning and retrieval both start from."""

from pathlib import Path

DECODER_STATES = Path("data/features/captioning")  # validation images' hidden states, for the decoder
RETRIEVAL_VECTORS = Path(
    "data/features/retrieval"
)  # class-token states of views and captions, and the provided projections
REFERENCE_SEED = "captions/drawn"  # names the seed that draws the one caption that stands for an image
