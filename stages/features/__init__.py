"""The parquet cache of features: token tables, vector tables, shards."""
