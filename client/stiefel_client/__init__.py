"""The Python client and the `stiefel` command line."""
