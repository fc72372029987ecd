"""Where an image comes from: folders, lists, archives, stores; a failure is a value."""
