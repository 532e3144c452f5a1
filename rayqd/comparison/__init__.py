"""Several ways to the same small model, at one price and over several seeds: what is run, and what it decides."""
