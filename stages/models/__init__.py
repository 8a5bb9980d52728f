"""Models with named outputs, and `checkpoints/`, which brings them to this machine. Nothing here knows a task."""
