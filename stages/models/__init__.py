"""Frozen models with named outputs. They know nothing of tasks or of `params.yaml`."""
