"""Data sets that are built from Python, npm and Debian packages."""
