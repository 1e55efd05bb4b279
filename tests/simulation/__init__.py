"""Seeded runs of the real loop and core with hostile workers and clients, without any I/O."""
