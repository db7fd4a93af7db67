"""The soak run: a million messages over a broker while connections, the broker and the workers keep failing."""
