"""The pipeline as a whole: its stages, what would run and why, what has run, and a small run of all of it."""
