"""What a run of the pipeline would download, compute and store, told before any of it is done."""
