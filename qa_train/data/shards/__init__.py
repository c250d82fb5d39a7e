"""Records on disk: tar shards, their indexes and catalogs, local and remote storage, and the cache of remote shards.

Above `audio`, `order` and `text`. From outside: `index.load_index` and `sidecar` to read, `writer.ShardWriter` to
write, `storage` to open paths and expand patterns.
"""
