"""What an update is: parameter groups by part and depth, Muon, and Muon joined with AdamW.

Used by the trainer mixin; the first screen asks `groups` for the part of a parameter.
"""
