"""The models that a profile asks for, brought to this machine: what comes after needs no network."""
