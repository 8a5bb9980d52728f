"""What a run of the pipeline would download, compute and store; nothing of it is done."""
