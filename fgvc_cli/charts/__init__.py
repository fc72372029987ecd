"""Drawing of curves and tables."""
