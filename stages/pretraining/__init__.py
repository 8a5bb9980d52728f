"""How the shipped checkpoints were pretrained."""
