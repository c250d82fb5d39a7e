"""Where bytes are: local files, web servers and object stores, read by range, and the cache of what was fetched.

Knows nothing of what the bytes mean. From outside: `storage` to open paths and expand patterns, `remote` to read byte
ranges, `folders` to write to.
"""
