"""Many runs that differ in a few settings: which are tried, run side by side, compared, and put on one page."""
