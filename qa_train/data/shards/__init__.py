"""Records on disk: tar shards, their indexes and catalogs, and the counts of their tokens.

Above `audio`, `order`, `text` and `stores`. From outside: `index.load_index` and `sidecar` to read,
`writer.ShardWriter` to write.
"""
