"""BLIP's image and text towers run once over images and captions: the inputs of captioning and retrieval."""

from pathlib import Path

DECODER_STATES = Path("data/features/captioning")  # hidden states of validation images
# Class-token states of views and captions, and the projections that BLIP came with.
RETRIEVAL_VECTORS = Path("data/features/retrieval")
REFERENCE_SEED = "captions/drawn"  # seed name of the reference caption of an image
