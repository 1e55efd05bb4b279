"""Patterns: which are admitted, and that admitted ones leave a matcher nothing to choose."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.trust.json_schemas import compile_schema
from broker.trust.patterns import PatternRefused, check_pattern
from schemas.canonical import canonical_bytes

ADMITTED = [
    "^", "^$", "^a", "^a+$", "^.*$", r"^\S+$", "^x-", "^[a-]$", "^[-a]$", r"^[a\]b]$", r"^\$\^$",
    "^[a-z][a-z0-9-]{2,63}$", "^[0-9a-f]{64}$", "^(a|b)+$", "^(?:a|b|cd)*$", "^https?://[^/]+/.*$",
    r"^\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}(:\d{2})?Z)?$", "^[^@]+@[^@]+$", "^[a-z]+(-[a-z]+)*$",
    "^a{3}a*$", "^[0-9]{4}[0-9]*$", "^(ab){2}c$", "^a{0,3}$", "^(a?){1}b$", "^([ab]{50}c?)*$",
    "^\u00e9t\u00e9$", "^[\u00e0-\u00ff]+$",
]
"""Patterns that authors need; each says at every character where it is."""

REFUSED = {
    "": "begins with", "a": "begins with", ".*a": "begins with",
    "^(a+)+$": "deterministic", "^(a|aa)+$": "deterministic", "^(.*a){20}c": "deterministic",
    "^(a*)*c": "deterministic", "^.*a$": "deterministic", "^a*a": "deterministic",
    "^a?a": "deterministic", "^a{2,3}a": "deterministic", "^(a?){3}": "deterministic",
    "^(a|b)*a(a|b){50}c": "deterministic", "^(a{2,3}){2}": "deterministic",
    "^(ab?){2}b": "deterministic", "^(a|[^b])": "deterministic", r"^(\w|\d)": "deterministic",
    "^(a|){2}": "deterministic", "^(|a)a": "deterministic",
    "^(\u00e9|\u00fc)": "deterministic", r"^(\D|\s)": "deterministic",
    "^a|b": "in a group", "^)": "in a group", "^a^": "meant as itself", "^a$b": "$ last",
    "^(a$)": "closes its groups", "^(": "closes its groups",
    "^(?=a)": "look-around", "^(?<!a)b": "look-around", "^(?i)a": "flags", "^(?P<n>a)": "names",
    r"^\bfoo": "escapes", r"^(a)\1": "references", r"^\p{L}": "escapes", r"^\u0061": "escapes",
    "^[[:alpha:]]": "class", "^[a&&b]": "class", "^[--b]": "class", "^[]a]": "class",
    "^[": "in the middle", "^\\": "in the middle", "^[z-a]": "ranges", "^[a--]": "ranges",
    r"^[\d-z]": "ranges",
    "^a{": "repetitions", "^a{3": "repetitions", "^a{3,2}": "repetitions", "^a{0}": "repetitions",
    "^a{,3}": "repetitions", "^a{99999}": "repetitions",
    "^a**": "meant as itself", "^a+?": "meant as itself", "^a{1}{1}": "meant as itself",
    "^]": "meant as itself", "^" + "(" * 33: "in one another",
}


@pytest.mark.parametrize("pattern", ADMITTED)
def test_what_authors_need_is_admitted_and_means_what_it_says(pattern: str):
    """The pattern passes, its schema compiles, and the engine agrees with another one."""
    check_pattern(pattern)
    validator = compile_schema(canonical_bytes({"pattern": pattern}))
    for text in ("", "a", "aaa", "ab", "abab", "x-1", "a-b", "me@home", "2026-01-02", "0" * 64):
        assert (validator.problem(text) is None) is (re.search(pattern, text) is not None), text


@pytest.mark.parametrize("pattern", REFUSED)
def test_what_leaves_a_choice_is_refused_with_the_rule(pattern: str):
    """Each pattern that lets a matcher be at two places at once, or is not notation, is refused."""
    with pytest.raises(PatternRefused, match=re.escape(REFUSED[pattern])):
        check_pattern(pattern)


Node = tuple[str, tuple["Node", ...]]
"""A pattern as a tree: what it is, and its parts."""
Word = tuple[tuple[str, str], ...]
"""A text of a pattern's language: each character with the place of the pattern it was read at."""

REPEATED = {"?": (0, 1), "*": (0, 4), "+": (1, 4), "{2}": (2, 2), "{2,3}": (2, 3), "{0,2}": (0, 2)}
WORD_MAX = 4


def written(node: Node) -> str:
    """The pattern's text."""
    kind, parts = node
    if not parts:
        return kind
    texts = [written(part) for part in parts]
    if kind == "|":
        return "(" + "|".join(texts) + ")"
    return "".join(texts) if kind == "then" else f"(?:{texts[0]}){kind}"


def words(node: Node, place: str) -> set[Word]:
    """Every text of at most WORD_MAX characters, with places."""
    kind, parts = node
    if not parts:
        letters = "ab" if kind in (".", r"\w") else kind
        return {((letter, place),) for letter in letters}
    found = [words(part, f"{place}.{number}") for number, part in enumerate(parts)]
    if kind == "|":
        return set[Word]().union(*found)
    if kind == "then":
        return joined(found)
    least, most = REPEATED[kind]
    # A loop returns to its own places; what is counted is written out.
    copies = [
        found[0] if kind in "*+" else words(parts[0], f"{place}.0x{number}")
        for number in range(most)
    ]
    return set[Word]().union(*(joined(copies[:count]) for count in range(least, most + 1)))


def joined(parts: list[set[Word]]) -> set[Word]:
    """One text of each part after the other."""
    whole: set[Word] = {()}
    for part in parts:
        whole = {
            left + right for left, right in itertools.product(whole, part)
            if len(left) + len(right) <= WORD_MAX
        }
    return whole


NODES: st.SearchStrategy[Node] = st.recursive(
    st.sampled_from(["a", "b", ".", r"\w"]).map(lambda letter: (letter, ())),
    lambda part: st.one_of(
        st.tuples(st.sampled_from(["then", "|"]), st.tuples(part, part)),
        st.tuples(st.sampled_from(sorted(REPEATED)), st.tuples(part)),
    ),
    max_leaves=5,
)


@settings(max_examples=400, deadline=None)
@given(NODES)
def test_an_admitted_pattern_is_never_at_two_places(node: Node):
    """Whatever was read, a character is read at one place only, in every text of the pattern."""
    try:
        check_pattern("^" + written(node))
    except PatternRefused:
        return
    goes_on: dict[tuple[Word, str], set[str]] = {}
    for word in words(node, "0"):
        for end, (letter, place) in enumerate(word):
            goes_on.setdefault((word[:end], letter), set()).add(place)
    assert all(len(places) == 1 for places in goes_on.values()), written(node)
