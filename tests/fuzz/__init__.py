"""Fuzzing: any bytes from anyone give an answer or a refusal, never another exception."""
