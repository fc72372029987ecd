"""An index of embeddings and exact search in it."""
