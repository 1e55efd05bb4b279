"""Tests of the languages: codecs, canonical JSON, events, refusals and their golden bytes."""
