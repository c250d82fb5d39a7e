"""The starter data of the repository (data/starter), made of recordings, sounds and texts of Debian packages."""
