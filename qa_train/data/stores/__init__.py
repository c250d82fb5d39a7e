"""Where bytes are: local files, web servers and object stores, read by range, the cache of what was fetched, and files
that the processes of a node share.

Knows nothing of what the bytes mean. From outside: `storage` to open paths and expand patterns, `remote` to read byte
ranges, `folders` to write to, `node_files` to make something once on a node.
"""
