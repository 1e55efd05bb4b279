"""The table of system calls against the filters that are generated from it."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_worker.jail import linux, policy
from sandbox_worker.jail.bpf import ALLOW, KILL, Rule
from tests.sandbox_worker.jail import oracle
from tests.sandbox_worker.jail.evaluator import evaluate, severity, stacked

GARBAGE = 0xDEADBEEF00000000
VALUES = (0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 19, 20, 0x22, 0x21, 0x32, 0x01200011, 2**31, 2**32 - 1)
X32 = 0x40000000
NUMBERS = (*range(1024), -1, X32, X32 | 1, X32 | 520, 2**31)
BASE = policy.base_filter()

Grants = dict[Literal["clock", "random", "descriptors"], int]
EVERY: list[Grants] = [
    {"clock": clock, "random": random, "descriptors": count}
    for clock, random in itertools.product((False, True), repeat=2)
    for count in range(policy.FILES_MAX + 1)
]
"""All variants of the call process's filter."""
SOME = [one for one in EVERY if one["descriptors"] in (0, 1, policy.FILES_MAX)]
CALL = [policy.call_filter(**one) for one in EVERY]
STRICT = [policy.strict_rules(**one) for one in EVERY if not one["descriptors"]]


def _probes() -> list[tuple[int, ...]]:
    """Argument registers that exercise every check: each value in each place, with garbage too."""
    probes: list[tuple[int, ...]] = [(0,) * 6, (GARBAGE,) * 6]
    for place, value in itertools.product(range(6), VALUES):
        for high in (0, GARBAGE):
            arguments = [0] * 6
            arguments[place] = value | high
            probes.append(tuple(arguments))
    for number, whence, high in itertools.product((3, 4, 5, 19, 20), (0, 2, 3), (0, GARBAGE)):
        probes.append((number | high, 0, whence | high, 0, 0, 0))
    probes.append((0, 4096, 3, 0x22, 2**64 - 1, 0))
    return probes


def _expected(rule: Rule, arguments: tuple[int, ...]) -> int:
    good = all(check.holds(arguments[check.argument]) for check in rule.checks)
    return rule.action if good else rule.otherwise


def _disagreements(programs: list[bytes], rules: dict[str, Rule]) -> list[tuple[object, ...]]:
    """Where the stacked programs do something else than the table, over every number."""
    names = {number: name for name, number in policy.numbers().items()}
    checked = {*policy.CHECKED, *policy.CLOCK, *policy.RANDOM, *policy.ZYGOTE, "lseek"}
    probes = _probes()
    return [
        (number, arguments)
        for number in NUMBERS
        for arguments in (probes if names.get(number) in checked else probes[:2])
        if stacked(programs, number, arguments)
        != _expected(rules.get(names.get(number, ""), Rule(KILL)), arguments)
    ]


def test_the_zygotes_filter_does_what_the_table_says() -> None:
    """Numbers 0 to 1023, -1 and x32 ones, each with a set of argument registers."""
    assert _disagreements([BASE], policy.base_rules()) == []


@pytest.mark.parametrize("grants", SOME, ids=str)
def test_both_filters_together_do_what_the_table_says(grants: Grants) -> None:
    """A call process does for every number what its strict table says, and nothing softer."""
    programs = [BASE, policy.call_filter(**grants)]

    assert _disagreements(programs, policy.strict_rules(**grants)) == []


@pytest.mark.parametrize("grants", EVERY, ids=str)
def test_a_call_process_adds_a_rule_wherever_the_zygotes_differs(grants: Grants) -> None:
    """Where both tables agree one filter is enough; elsewhere the short one has strict's rule.

    And there the zygote's never refuses what strict allows, so the short one's answer counts.
    """
    strict, base = policy.strict_rules(**grants), policy.base_rules()
    program, known = CALL[EVERY.index(grants)], policy.numbers()
    assert set(strict) <= set(base)
    for name, number in known.items():
        if base.get(name) == strict.get(name):
            assert evaluate(program, number, (GARBAGE,) * 6) == ALLOW, name
            continue
        for arguments in _probes():
            wanted = _expected(strict.get(name, Rule(KILL)), arguments)
            assert evaluate(program, number, arguments) == wanted, name
            assert severity(evaluate(BASE, number, arguments)) >= severity(wanted), name


_name = st.sampled_from(sorted(policy.numbers()))
_low = st.one_of(st.sampled_from(VALUES), st.integers(0, 2**32 - 1))
_high = st.one_of(st.just(0), st.integers(0, 2**32 - 1))


@settings(deadline=None, max_examples=300)
@given(
    grants=st.sampled_from(EVERY), name=_name, lows=st.tuples(*[_low] * 6),
    highs=st.tuples(*[_high] * 6),
)  # fmt: skip
def test_garbage_in_high_halves_changes_nothing_it_must_not(
    grants: Grants, name: str, lows: tuple[int, ...], highs: tuple[int, ...]
) -> None:
    """Any registers for any call: the filters agree with the table.

    The high half of a 32-bit argument decides nothing, as in the kernel; that of a wide one must
    be zero.
    """
    programs = [BASE, CALL[EVERY.index(grants)]]
    number = policy.numbers()[name]
    rule = policy.strict_rules(**grants).get(name, Rule(KILL))
    registers = tuple(low | high << 32 for low, high in zip(lows, highs, strict=True))

    found = stacked(programs, number, registers)

    assert found == _expected(rule, registers)
    wide = {check.argument for check in rule.checks if check.bits == 64}
    if not any(highs[place] for place in wide):
        assert found == stacked(programs, number, lows)
    elif rule.checks:
        assert found == rule.otherwise


KERNEL_WIDTHS = {
    "read": {0: 32}, "write": {0: 32}, "lseek": {0: 32, 2: 32}, "dup3": {1: 32},
    "mmap": {2: 64, 3: 64}, "mprotect": {2: 64}, "mremap": {3: 64}, "madvise": {2: 32},
    "clone": {0: 64}, "kill": {1: 32}, "futex": {1: 32}, "prlimit64": {0: 32}, "seccomp": {0: 32},
    "clock_gettime": {0: 32}, "clock_getres": {0: 32}, "clock_nanosleep": {0: 32},
    "sched_setscheduler": {1: 32},
    "timer_create": {0: 32}, "getrandom": {2: 32}, "socket": {0: 32, 1: 32},
    "socketpair": {0: 32, 1: 32},
}  # fmt: skip
"""By the kernel's own declarations (SYSCALL_DEFINE): int-like is 32, unsigned long is 64."""


@pytest.mark.parametrize("grants", SOME, ids=str)
def test_arguments_are_looked_at_as_wide_as_the_kernel_uses_them(grants: Grants) -> None:
    """Too narrow a look lets high bits through, too wide a one trips over garbage."""
    for rules in (policy.strict_rules(**grants), policy.base_rules(),
                  policy.supervisor_rules(), policy.connected_rules()):  # fmt: skip
        for name, rule in rules.items():
            for check in rule.checks:
                assert check.bits == KERNEL_WIDTHS[name][check.argument], (name, check)


def _with_oracle(programs: list[bytes], rules: dict[str, Rule]) -> list[tuple[object, ...]]:
    """Where our programs and libseccomp's of the same rules differ, over every number."""
    known = policy.numbers()
    by_number = {known[name]: rule for name, rule in rules.items()}
    theirs = oracle.build(by_number)
    probes = _probes()
    wrong = []
    for number in NUMBERS:
        rule = by_number.get(number, Rule(KILL))
        for arguments in probes if rule.checks else probes[:2]:
            passes = evaluate(theirs, number, arguments)
            # It has one answer for whatever fails its checks; ours has the rule's own.
            wanted = rule.otherwise if rule.checks and passes == KILL else passes
            if stacked(programs, number, arguments) != wanted:
                wrong.append((number, arguments))
    return wrong


def test_libseccomp_reads_the_zygotes_table_alike() -> None:
    """A filter that libseccomp built from the same rules decides every number as ours does."""
    assert _with_oracle([BASE], policy.base_rules()) == []


@pytest.mark.parametrize("grants", SOME, ids=str)
def test_libseccomp_reads_the_table_of_a_call_process_alike(grants: Grants) -> None:
    """And so does one from the strict rules, against our two filters together."""
    programs = [BASE, policy.call_filter(**grants)]

    assert _with_oracle(programs, policy.strict_rules(**grants)) == []


def test_libseccomp_knows_the_calls_by_the_same_numbers() -> None:
    """Every name that it knows has our number; it may be too old for the newest."""
    ours = policy.numbers()
    theirs = {name: oracle.number_of(name) for name in ours}
    unknown = {name for name, number in theirs.items() if number < 0}

    assert {name for name in set(ours) - unknown if ours[name] != theirs[name]} == set()
    # Since 5.0 new calls have numbers above 400; the two are younger and fill a gap.
    assert {name for name in unknown if ours[name] < 400} <= {"uprobe", "uretprobe"}


def test_other_architectures_and_x32_are_killed_by_every_filter() -> None:
    """Whatever the number, a call of another ABI ends the process, also where numbers coincide."""
    i386, aarch64 = 0x40000003, 0xC00000B7
    for program in (BASE, *CALL):
        for number in (0, 1, 3, 5, 20, 39, 60, 231, 500):
            assert {evaluate(program, number, arch=arch) for arch in (i386, aarch64)} == {KILL}
            assert evaluate(program, X32 | number) == KILL


def test_capabilities_change_only_their_own_calls() -> None:
    """A grant of clock or random adds its rows and touches nothing else."""
    none, random, clock, both = STRICT

    assert {name for name in none if none[name] != clock[name]} == set(policy.CLOCK)
    assert {name for name in none if none[name] != random[name]} == set(policy.RANDOM)
    assert {name for name in none if none[name] != both[name]} == {*policy.CLOCK, *policy.RANDOM}
    assert all(set(none) == set(other) for other in STRICT)


@pytest.mark.parametrize("count", range(policy.FILES_MAX + 1))
def test_granted_descriptors_can_be_read_and_moved_in_and_nothing_else(count: int) -> None:
    """Exactly 4 to 3 + count may be read and sought in; 3 stays the job; no other call changes."""
    programs = [BASE, policy.call_filter(clock=False, random=False, descriptors=count)]
    with_files = policy.strict_rules(clock=False, random=False, descriptors=count)
    known, none = policy.numbers(), STRICT[0]

    for name, allowed in (
        ("read", {3, *range(4, 4 + count)}), ("lseek", {*range(4, 4 + count)}), ("write", {3}),
        ("pread64", set()), ("fstat", set()), ("dup", set()), ("mmap", set()), ("fcntl", set()),
    ):  # fmt: skip
        for number in range(64):
            found = stacked(programs, known[name], (number | GARBAGE, 0, 0))
            assert (found == ALLOW) == (number in allowed), (name, number)
    changed = {name for name in none if none[name] != with_files[name]}
    assert changed == ({"read", "lseek"} if count else set())
    assert set(none) == set(with_files)


@pytest.mark.parametrize("count", [-1, policy.FILES_MAX + 1])
def test_there_is_no_filter_for_too_many_descriptors(count: int) -> None:
    """The zygote's filter would refuse what such a filter promised."""
    with pytest.raises(ValueError, match="descriptors"):
        policy.call_filter(clock=False, random=False, descriptors=count)


def test_a_name_stands_in_one_row() -> None:
    """No call is listed twice, where the later row would silently win."""
    rows = [
        *(name for names in policy.SOFT.values() for name in names.split()),
        *policy.ALWAYS.split(), *policy.ZERO.split(), *policy.CHECKED, *policy.CLOCK,
        *policy.RANDOM,
    ]  # fmt: skip

    assert sorted(rows) == sorted(set(rows))
    assert set(rows) | set(policy.ZYGOTE) <= set(policy.numbers())
    assert set(policy.SUPERVISOR_REFUSED.split()) <= set(policy.numbers())


def test_the_worst_of_the_kernel_is_killed_in_every_filter() -> None:
    """Calls that only an attack makes end the process, whatever was granted."""
    attacks = (
        "ptrace process_vm_readv process_vm_writev keyctl add_key request_key io_uring_setup "
        "userfaultfd bpf perf_event_open mount umount2 pivot_root unshare setns shmget shmat "
        "semget msgget mq_open personality modify_ldt splice name_to_handle_at open_by_handle_at "
        "init_module kexec_load landlock_create_ruleset pidfd_open pidfd_getfd process_madvise"
    )
    known = policy.numbers()
    for name in attacks.split():
        for program in CALL:
            assert stacked([BASE, program], known[name]) == KILL, name


def test_call_numbers_of_the_raw_layer_are_those_of_the_table() -> None:
    """`linux.py` spells its numbers out, because a zygote reads no table."""
    known = policy.numbers()
    constants = {
        name.lower(): value
        for name, value in vars(linux).items()
        if name.isupper() and not name.startswith(("PR_", "_")) and type(value) is int
    }

    assert constants == {name: known[name] for name in constants}


def test_a_sealed_supervisor_may_start_threads_and_no_process() -> None:
    """CLONE_THREAD decides; clone3, whose flags no filter can see, does not exist."""
    program = policy.program(policy.supervisor_rules(), ALLOW)
    known = policy.numbers()

    assert evaluate(program, known["clone"], (0x3D0F00,)) == ALLOW
    assert evaluate(program, known["clone"], (0x1200011,)) == 0x00050001
    assert evaluate(program, known["clone3"]) == 0x00050026
    assert evaluate(program, known["execve"]) == 0x00050001
    assert evaluate(program, known["openat"]) == ALLOW


def test_a_late_thread_of_a_connected_supervisor_keeps_its_policy() -> None:
    """libzmq's threads repeat their own when they first run; idle or real time is for nobody."""
    programs = [policy.program(policy.supervisor_rules(), ALLOW),
                policy.program(policy.connected_rules(), ALLOW)]  # fmt: skip
    number = policy.numbers()["sched_setscheduler"]

    found = {kind: stacked(programs, number, (1234, kind)) == ALLOW for kind in range(8)}

    assert found == {kind: kind in (0, 3) for kind in range(8)}
    assert stacked(programs, policy.numbers()["sched_setparam"], (1234,)) != ALLOW
