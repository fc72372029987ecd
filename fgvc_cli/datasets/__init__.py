"""Published labelled sets: what they are, how to get and to check them."""
