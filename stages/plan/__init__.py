"""What a run of the pipeline would download, compute and store, without doing it."""
