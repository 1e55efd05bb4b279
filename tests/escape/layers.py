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
    """Whether an attempt is made under these layers.

    What a single layer holds is made with that one alone and in the full jail: that some other
    layer is missing there can show nothing that these two do not.
    """
    if attempt.only in layers and layers not in (EVERYTHING, with_needs(attempt.only)):
        return False
    own = {layer for clause in attempt.held.split() for layer in clause.split("+")} & EVERYTHING
    chosen = [frozenset(), EVERYTHING, *map(with_needs, own), *map(without, own)]
    return not attempt.costly or layers in chosen


def has_control(attempt: Attempt, *, root: bool) -> bool:
    """Whether some combination lets it succeed; an ordinary user has no rights over the host."""
    return any(
        expected(attempt, layers, root=root) == "succeeded"
        for layers in COMBINATIONS.values() if tried(attempt, layers)
    )  # fmt: skip


def tables(attempts: tuple[Attempt, ...], others: dict[str, int]) -> list[str]:
    """Two tables for docs/AUDIT.md: the classes, and what each layer holds.

    Args:
        attempts: all that layers hold.
        others: classes that no layer holds, by name to number.
    """
    lines = ["| class | attempts | two layers or more | seccomp only | another layer only |",
             "|---|---|---|---|---|"]  # fmt: skip
    for group in dict.fromkeys(attempt.group for attempt in attempts):
        own = [attempt for attempt in attempts if attempt.group == group]
        only = [attempt.only for attempt in own if attempt.only]
        rest = ", ".join(sorted({layer for layer in only if layer != "seccomp"}))
        counts = len(own), len(own) - len(only), only.count("seccomp")
        left = len(only) - counts[2]
        lines.append(f"| {group.replace('_', ' ')} | {counts[0]} | {counts[1]} | {counts[2]} | "
                     f"{f'{left} ({rest})' if left else 0} |")  # fmt: skip
    lines += [f"| {name} | {number} | | | {number} (supervisor) |"
              for name, number in others.items()]  # fmt: skip
    lines += ["", "| layer alone | attempts it holds | of them, no other layer holds |",
              "|---|---|---|"]  # fmt: skip
    for layer in LAYERS:
        held = [attempt for attempt in attempts if holds(layer, attempt)]
        sole = sum(attempt.only == layer for attempt in held)
        lines.append(f"| {layer} | {len(held)} | {sole} |")
    return lines


def holds(layer: str, attempt: Attempt) -> bool:
    """Whether a layer alone refuses what succeeds without any, as root or as an ordinary user."""
    return any(
        expected(attempt, frozenset(), root=root) == "succeeded"
        and expected(attempt, with_needs(layer), root=root) != "succeeded"
        for root in (True, False)
    )
