"""The document that every row of the bus carries: about a kilobyte of canonical JSON."""

from __future__ import annotations

from typing import Final

import rfc8785

DOCUMENT: Final = rfc8785.dumps(
    {
        "id": "7b0c7a52-9f5e-4a53-8a3e-2f3f0f6f2d11",
        "kind": "observation",
        "labels": ["alpha", "beta", "gamma", "delta", "epsilon"],
        "measures": [
            {"name": f"channel-{number}", "unit": "count", "value": number * 7919}
            for number in range(10)
        ],
        "note": "The quick brown fox jumps over the lazy dog. " * 8,
        "valid": True,
    }
)
