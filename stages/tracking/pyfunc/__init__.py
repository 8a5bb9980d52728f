"""Trained models as MLflow loads them: one module per task, whose `_load_pyfunc` gets the folder with the weights."""
