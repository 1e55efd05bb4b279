"""Tests that every example is packed, admitted and right."""
