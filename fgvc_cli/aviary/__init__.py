"""The rendered test world."""
