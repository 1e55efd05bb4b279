"""The how-to pages, played as they stand."""
