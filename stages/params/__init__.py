"""The typed, validated content of `params.yaml`.

A section a file where a stage reads that section alone: a stage depends on the files that it imports, and
pretraining must not become stale because another task gained a key.
"""
