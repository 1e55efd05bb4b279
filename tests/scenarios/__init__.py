"""Transcripts: commands, and the ledger they must produce. Reading one teaches a rule."""
