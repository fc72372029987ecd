"""Measuring a model: metrics, intervals, calibration, comparison, localisation."""
