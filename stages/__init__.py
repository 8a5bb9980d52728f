"""vitlab: a reproducible laboratory for vision transformers."""
