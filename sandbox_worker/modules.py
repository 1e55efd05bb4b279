"""Which modules a plugin may ask for: the vetted list of the standard library, and msgspec.

A call process has no file system, so a module must be loaded in the zygote before its jail closes.
What is loaded there decides the speed of every call, so only what the manifest names is loaded. The
list holds modules that compute; none that starts threads, processes or sockets, and none whose
purpose is the machine. `ctypes` is not vetted: the kernel holds against it, but it has no use here.
"""

VETTED = frozenset(
    """
    abc array ast base64 binascii bisect bz2 calendar cmath codecs collections collections.abc
    colorsys contextlib copy csv dataclasses datetime decimal difflib enum fractions functools
    gzip hashlib heapq hmac html html.entities html.parser io ipaddress itertools json keyword lzma
    math msgspec numbers operator pprint random re reprlib secrets statistics string stringprep
    struct textwrap time tomllib types typing unicodedata urllib.parse uuid warnings weakref
    xml.etree.ElementTree zlib zoneinfo
    """.split()
)

FREE = frozenset({"__future__", "builtins", "sandbox_worker.sdk", "sys"})
"""Present in every zygote; a manifest need not name them."""

COMPANIONS: dict[str, tuple[str, ...]] = {
    "datetime": ("_strptime",),
}
"""What a vetted module imports late, when there is no file system any more."""
