"""What all tests share: property tests are bounded by examples, not by a clock that others use."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("gateway", deadline=None, print_blob=True)
settings.load_profile("gateway")
