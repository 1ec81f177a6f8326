"""The published tables, all rows of them: what has to run, where, and what has come of it."""
