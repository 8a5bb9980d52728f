"""MLflow shows the runs; their records are the truth."""
