"""Data sets that Python and Debian packages carry."""
