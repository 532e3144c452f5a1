"""What `rayqd bench` measures: on this machine, with random weights, beside the same work done plainly."""
