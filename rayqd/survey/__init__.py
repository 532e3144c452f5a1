"""What each architecture of the installed transformers comes to in rayqd, tried on tiny random models."""
