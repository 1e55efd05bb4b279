"""Tests of `omega-gateway` as its users call it: real processes, exit codes, both streams."""
