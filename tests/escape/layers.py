"""The layers of the jail, the sets in which they are tried, and what each set must give.

Pure. The jail has no switch that leaves a layer out: `rig.py` composes the same steps without one.
"""

from __future__ import annotations

from tests.escape.attempts.attempt import Attempt

LAYERS: dict[str, str] = {
    "identity": "root is given up for the sandbox user (nothing to do for an ordinary user)",
    "namespaces": "seven new namespaces, a pid 1 of their own, no further ones",
    "root": "an empty read-only root; it needs the namespaces to be built",
    "privileges": "no capability in any set, no_new_privs",
    "hidden": "non-dumpable",
    "limits": "resource limits of zygote and call process, and the processor timer",
    "landlock": "a zygote's domain without a rule, and a call process's own within",
    "descriptors": "every descriptor but the job closed",
    "time": "zero pages over the kernel's time data, wall clock refused by name",
    "seccomp": "the zygote's filter and the call process's",
}
"""In the order in which they are put on."""

EVERYTHING = frozenset(LAYERS)


def with_needs(layer: str) -> frozenset[str]:
    """A layer alone, and what it cannot be built without."""
    return frozenset({"namespaces", "root"} if layer == "root" else {layer})


def without(layer: str) -> frozenset[str]:
    """Everything but a layer, and but what cannot be built without it."""
    return EVERYTHING - ({"namespaces", "root"} if layer == "namespaces" else {layer})


COMBINATIONS: dict[str, frozenset[str]] = {
    "full": EVERYTHING,
    "none": frozenset(),
    **{f"only {layer}": with_needs(layer) for layer in LAYERS},
    **{f"without {layer}": without(layer) for layer in LAYERS},
}


def effects(layers: frozenset[str], *, root: bool) -> frozenset[str]:
    """The layers and what follows from them together about the process's rights.

    `no_rights`: no capability even over its own namespaces; a user namespace gives them all, so
    giving up root helps only outside of one. `no_host_rights`: none over the host.
    """
    found = set(layers)
    ordinary = not root or "identity" in layers
    if "privileges" in layers or (ordinary and "namespaces" not in layers):
        found.add("no_rights")
    if ordinary or layers & {"privileges", "namespaces"}:
        found.add("no_host_rights")
    return frozenset(found)


def expected(attempt: Attempt, layers: frozenset[str], *, root: bool) -> str:
    """How an attempt must end under these layers: "succeeded", or as the one holding it answers."""
    on = effects(layers, root=root)
    holding = [clause for clause in attempt.held.split() if on >= set(clause.split("+"))]
    if not holding:
        return "succeeded"
    if "seccomp" in layers and "seccomp" in attempt.held.split():
        return attempt.answer
    return attempt.answer if attempt.answer == "ended" else "refused"


def tried(attempt: Attempt, layers: frozenset[str]) -> bool:
    """Whether an attempt is made under these layers: always, unless it is costly."""
    own = {layer for clause in attempt.held.split() for layer in clause.split("+")} & EVERYTHING
    chosen = [frozenset(), EVERYTHING, *map(with_needs, own), *map(without, own)]
    return not attempt.costly or layers in chosen


def has_control(attempt: Attempt, *, root: bool) -> bool:
    """Whether some combination lets it succeed; an ordinary user has no rights over the host."""
    return any(
        expected(attempt, layers, root=root) == "succeeded"
        for layers in COMBINATIONS.values() if tried(attempt, layers)
    )  # fmt: skip
