"""The structure of audio files, read from their own bytes before anything is decoded.

One file for each family of formats; `formats` chooses among them and is what other modules import, with the errors
and facts of `containers`. Nothing here needs numpy, torch or a decoder.
"""
