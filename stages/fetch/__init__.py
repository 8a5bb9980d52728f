"""Downloads with a checksum, and safe extraction."""
