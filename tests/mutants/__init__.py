"""Planted faults: each patch must make the suite fail, for the reason it names."""
