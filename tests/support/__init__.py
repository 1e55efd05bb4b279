"""What several test packages share: makers of real signed things, and small helpers."""
