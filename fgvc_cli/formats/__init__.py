"""Rows of predictions and their files."""
