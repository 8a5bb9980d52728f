"""The models of a profile: downloaded, converted and recorded, so that later stages need no network."""
