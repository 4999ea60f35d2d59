"""Suites of questions besides the test set: their one shape, and where questions come from."""
