"""Tests of `omega-plugin` and of what it packs."""
