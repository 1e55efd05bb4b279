"""The assembler against the definition of its rules, in user space."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sandbox_worker.jail.bpf import ALLOW, KILL, Check, Rule, assemble, disassemble, errno_action
from tests.sandbox_worker.jail.evaluator import evaluate

I386, X32 = 0x40000003, 0x40000000

_word = st.integers(0, 2**32 - 1)
_check = st.builds(
    Check,
    argument=st.integers(0, 5),
    bits=st.sampled_from([32, 64]),
    one_of=st.lists(_word, max_size=6).map(tuple),
    subset=st.one_of(st.just(0xFFFFFFFF), _word),
    contains=st.one_of(st.just(0), _word),
)
_rule = st.builds(
    Rule,
    action=st.sampled_from([ALLOW, KILL, errno_action(1), errno_action(13)]),
    checks=st.lists(_check, max_size=3).map(tuple),
    otherwise=st.sampled_from([KILL, errno_action(9)]),
)
_register = st.one_of(
    st.integers(0, 2**64 - 1), st.integers(0, 16), st.integers(0, 2**32 - 1)
)


def _expected(rule: Rule, arguments: tuple[int, ...]) -> int:
    good = all(check.holds(arguments[check.argument]) for check in rule.checks)
    return rule.action if good else rule.otherwise


@given(
    rules=st.dictionaries(st.integers(0, 600), _rule, max_size=40),
    number=st.integers(0, 700),
    arguments=st.tuples(*[_register] * 6),
)
def test_a_program_decides_as_its_rules_say(
    rules: dict[int, Rule], number: int, arguments: tuple[int, ...]
) -> None:
    """For any table, number and argument registers, garbage in high halves included."""
    program = assemble(rules, KILL)

    expected = _expected(rules[number], arguments) if number in rules else KILL

    assert expected == evaluate(program, number, arguments)


@given(check=_check, value=_word, garbage=_word)
def test_only_wide_arguments_look_at_the_high_half(check: Check, value: int, garbage: int) -> None:
    """A 32-bit check ignores the high half as the kernel does; a 64-bit one insists on zero."""
    program = assemble({7: Rule(ALLOW, (check,))}, KILL)
    clean, dirty = [0] * 6, [0] * 6
    clean[check.argument] = value
    dirty[check.argument] = value | garbage << 32

    alone = evaluate(program, 7, tuple(clean))
    with_garbage = evaluate(program, 7, tuple(dirty))

    if check.bits == 32 or not garbage:
        assert alone == with_garbage
    elif not check.one_of:
        assert with_garbage == KILL


def test_far_branches_reach_their_target() -> None:
    """A table whose halves are longer than a conditional jump still decides every number."""
    wide = Rule(ALLOW, (Check(0, 64, one_of=tuple(range(100))),), errno_action(1))
    rules = dict.fromkeys(range(0, 200, 2), wide)
    program = assemble(rules, KILL)

    assert len(disassemble(program)) > 4 * 255
    for number in range(210):
        expected = ALLOW if number in rules else KILL
        assert expected == evaluate(program, number, (99,))


def test_other_architectures_and_x32_are_killed() -> None:
    """The same numbers mean other calls there, so nothing passes at all."""
    program = assemble({0: Rule(ALLOW)}, ALLOW)

    assert evaluate(program, 0) == ALLOW
    assert evaluate(program, 0, arch=I386) == KILL
    assert evaluate(program, X32) == KILL
    assert evaluate(program, 0xFFFFFFFF) == KILL


def test_equal_tables_give_equal_bytes() -> None:
    """The order in which rules were written down does not show."""
    rules = {5: Rule(ALLOW), 3: Rule(errno_action(1)), 90: Rule(ALLOW)}

    assert assemble(rules, KILL) == assemble(dict(reversed(rules.items())), KILL)
