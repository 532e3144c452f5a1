"""What repeated measurements decide: items and seeds crossed, their intervals, tests, and how many more would do."""
