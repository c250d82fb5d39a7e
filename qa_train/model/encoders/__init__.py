"""Audio encoders: the network of each, and where its weights come from."""
