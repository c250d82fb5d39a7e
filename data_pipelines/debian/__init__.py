"""Recordings, sounds and texts of Debian packages: the sources of the starter data."""
