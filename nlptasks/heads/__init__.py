"""One file for each task. They are found through their packages' entry points, never imported by name."""
