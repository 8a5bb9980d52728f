"""What every stage needs; it knows no task and no model."""
