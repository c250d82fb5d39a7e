"""Sound: bytes to waveforms, waveforms to log-mel frames, and what training does to them on the way.

The lowest floor of `qa_train.data`, with `structure` below it: it imports only the configuration. Reading (`waveform`,
`decoder`) needs no torch; `mel`, `augment` and `encoder_cache` do.
"""
