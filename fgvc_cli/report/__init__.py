"""A page of predictions for people: one HTML file with pictures, filters and, with labels, the mistakes."""
