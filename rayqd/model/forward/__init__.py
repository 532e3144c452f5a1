"""How a model runs on many rows in one call, and what its output head does: found by trying, not by name."""
