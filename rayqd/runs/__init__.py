"""What run directories tell to others than the run itself: a list, a live view, a comparison."""
