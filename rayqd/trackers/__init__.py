"""Runs in the trackers of others: Weights & Biases, TensorBoard, MLflow, Trackio, by their own libraries."""
