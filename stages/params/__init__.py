"""The typed, validated content of `params.yaml`, one file per section."""
