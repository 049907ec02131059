"""Benchmarks of a user's machine: what is faster there, by how much, and how near it is to what the machine can do."""
