"""Image sources; each gives the same manifest (`stages/data/manifest.py`)."""
