"""Pages that show runs: HTML pieces, charts, and the report of a run."""
