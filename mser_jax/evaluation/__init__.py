"""Scores, tables and plots, from arrays."""
