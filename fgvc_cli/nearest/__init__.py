"""Known photographs beside a model: an index of their embeddings, and the exact search in it."""
