"""Which modules a manifest may name without an operator's approval.

A table and nothing else: `broker.policy` refuses what is not in it, and a worker loads nothing that
is not. A call process has no file system, network, threads or environment, so the table holds
modules that compute; none that starts threads, processes or sockets, none that needs files, and
none whose purpose is the machine. `time` and `secrets` are here because a capability makes them
useful; without it the kernel refuses what they ask for.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Final

VETTED_MODULES: Final[frozenset[str]] = frozenset(
    {"abc", "array", "ast", "base64", "binascii", "bisect", "calendar", "cmath", "codecs",
     "collections", "collections.abc", "colorsys", "contextlib", "copy", "csv", "dataclasses",
     "datetime", "decimal", "difflib", "enum", "fractions", "functools", "gzip", "hashlib",
     "heapq", "hmac", "html", "html.entities", "html.parser", "io", "ipaddress", "itertools",
     "json", "keyword", "math", "msgspec", "numbers", "operator", "pprint", "random", "re",
     "reprlib", "secrets", "statistics", "string", "stringprep", "struct", "textwrap", "time",
     "tomllib", "types", "typing", "unicodedata", "urllib.parse", "uuid", "warnings", "weakref",
     "xml.etree.ElementTree", "zlib"}
)
"""Modules of the standard library that compute, and msgspec."""

FREE_MODULES: Final[frozenset[str]] = frozenset(
    {"__future__", "builtins", "sandbox_worker.sdk", "sys"}
)
"""Present in every call process; a manifest need not name them."""


def covers(approved: Collection[str], module: str) -> bool:
    """Say whether a module is approved: it, or a package that holds it."""
    parts = module.split(".")
    return any(".".join(parts[:count]) in approved for count in range(1, len(parts) + 1))


def is_standard(module: str) -> bool:
    """Say whether a module is of the standard library and so needs no folder of packages."""
    return module.partition(".")[0] in sys.stdlib_module_names
