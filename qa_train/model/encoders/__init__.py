"""Audio encoders. `kinds` is the table of them, and `interface` what the rest of the project asks of one.

The network of each is here, where its weights come from, and what it costs.
"""
