"""Data sets that ship with the package, made by `make demos`."""
