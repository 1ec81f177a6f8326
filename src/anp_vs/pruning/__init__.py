"""Gates, and taking pruned channels out of a network."""
