"""Making data: the commands `qa-train data import|voice-chat|analysis|mixtures|preferences|rewrite`.

The files here are those commands; what they share is in `clips`, `synthetic`, `corpora` and `importing`.
"""
