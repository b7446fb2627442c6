"""Small real parts for tests and for `core=tiny`."""
