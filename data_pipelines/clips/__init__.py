"""How shards are made, the clips of finished ones, and draws that depend on names alone."""
