"""Clients of others, each a program in a process of its own; the interop tests use them too."""
