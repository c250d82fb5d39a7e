"""Making data: the commands `qa-train data import|voice-chat|analysis|mixtures|preferences|rewrite`, the starter data
and the quickstart's sets.

The files here are those commands; what they share is in `clips`, `synthetic`, `corpora`, `importing` and `debian`.
"""
