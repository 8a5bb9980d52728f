"""Data sources by name (`sources.py`), which all give the same manifest (`manifest.py`)."""
