"""What a sandbox can have denied, by class: the capability that covers it and the line to add.

A plugin's process names the class of the last operation that was denied to it. The word comes from
hostile code: it is one of this closed list or it is refused, it never holds an argument, and
nothing is decided by it. A refusal's `hint` and `omega-plugin explain CLASS` say what stands here.

It leaves noticing to `sandbox_worker.denials` and granting to `broker.policy`.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

DeniedClass = Literal[
    "clock", "environment", "file", "import", "process", "random", "socket", "thread"
]


class Denial(NamedTuple):
    """One class: what was tried, what would cover it, and the line of plugin.toml to add.

    `line` is empty where nothing covers it in this version.
    """

    tried: str
    cover: str
    line: str


_NEVER: Final = "always refused in this version"

DENIALS: Final[dict[DeniedClass, Denial]] = {
    "clock": Denial(
        "reading or waiting for a clock", "the capability clock.read",
        'capabilities = ["clock.read"]',
    ),
    "environment": Denial(
        "reading an environment variable", 'the capability env.read:NAME, read as ctx.env["NAME"]',
        'capabilities = ["env.read:NAME"]',
    ),
    "file": Denial(
        "opening or listing a path", "the capability fs.read:ROOT, for a file that the method "
        'names and reads as ctx.files["NAME"], or for a file of the bundle resources = ["FILE"], '
        'read as ctx.resource("FILE")',
        'capabilities = ["fs.read:ROOT"]',
    ),
    "import": Denial(
        "importing a module that the manifest does not name",
        "naming it in the manifest, where policy allows the module",
        'modules = ["NAME"]',
    ),
    "process": Denial("starting or signalling a process", f"process.*, {_NEVER}", ""),
    "random": Denial(
        "drawing entropy", "the capability random.read", 'capabilities = ["random.read"]'
    ),
    "socket": Denial("opening a socket", f"net.connect, {_NEVER}", ""),
    "thread": Denial("starting a thread", f"nothing: threads are {_NEVER}", ""),
}
"""Every class, in the order of the documentation."""


def explanation(denied: str) -> str:
    """Say what was tried, what would cover it, and the line of plugin.toml to add.

    Raises:
        KeyError: the word is no class.
    """
    page = {str(known): page for known, page in DENIALS.items()}[denied]
    line = f"; add to plugin.toml: {page.line}" if page.line else ""
    return f"{denied} ({page.tried}); what would cover it: {page.cover}{line}"


def denied_hint(denied: str | None) -> str:
    """Word the hint of a refusal: a claim that comes from hostile code and is marked as one.

    Args:
        denied: what a worker passed on; None or a word that is no class gives less or nothing.
    """
    if not denied:
        return ""
    said = explanation(denied) if denied in DENIALS else denied
    return f"the plugin's process says that the sandbox denied: {said}"
