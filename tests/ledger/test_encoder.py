"""The fast encoder of events against RFC 8785, over values drawn from the structs themselves."""

from __future__ import annotations

import json

import msgspec
import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from schemas.events import EVENT_TYPES, GENESIS_HASH, decode_event, encode_event
from tests.evidence.conftest import load_script
from tests.ledger.conftest import LOG_ID

SCRIPT = load_script()


def values(kind: inspect.Type) -> st.SearchStrategy:
    """Draw what a field may hold, edges of its bounds included."""
    if isinstance(kind, inspect.Metadata):
        return values(kind.type)
    if isinstance(kind, inspect.UnionType):
        return st.one_of([values(one) for one in kind.types])
    if isinstance(kind, inspect.StrType):
        longest = kind.max_length or 128
        text = st.from_regex(kind.pattern) if kind.pattern else st.text(max_size=longest)
        return text.filter(lambda value: len(value) <= longest)
    if isinstance(kind, inspect.IntType):
        return st.integers(kind.ge, kind.le)
    if isinstance(kind, inspect.VarTupleType):
        return st.lists(values(kind.item_type), max_size=min(kind.max_length or 4, 4)).map(tuple)
    if isinstance(kind, inspect.DictType):
        return st.dictionaries(values(kind.key_type), values(kind.value_type), max_size=4)
    if isinstance(kind, inspect.EnumType):
        return st.sampled_from(list(kind.cls))
    if isinstance(kind, inspect.LiteralType):
        return st.sampled_from(kind.values)
    plain = {inspect.NoneType: st.none(), inspect.BoolType: st.booleans()}
    return plain[type(kind)]


def events(name: str) -> st.SearchStrategy:
    """Draw events of one type, with and without its optional fields."""
    kind = EVENT_TYPES[name]
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)
    required = {field.name: values(field.type) for field in described.fields if field.required}
    optional = {field.name: values(field.type) for field in described.fields if not field.required}
    return st.fixed_dictionaries(required, optional=optional).map(lambda given: kind(**given))


@pytest.mark.parametrize("name", sorted(EVENT_TYPES))
def test_every_drawn_event_is_its_own_canonical_form(name):
    """Whatever an event of this type holds, its line is RFC 8785 and both readers take it."""

    @settings(max_examples=25, deadline=None)
    @given(events(name), st.integers(0, 2**53 - 1))
    def check(fields, number):
        line, event_hash = encode_event(
            fields, log_id=LOG_ID, seq=number, ts_us=number, mono_us=number,
            prev_hash=GENESIS_HASH,
        )
        assert rfc8785.dumps(json.loads(line)) + b"\n" == line
        assert decode_event(line).fields == msgspec.convert(fields, type(fields))
        assert decode_event(line).event_hash == event_hash
        assert SCRIPT.decode_canonical(line)[1] == name
        assert SCRIPT.ENVELOPE.search(line)

    check()
