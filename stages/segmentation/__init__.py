"""Segmentation heads on frozen patch tokens."""
