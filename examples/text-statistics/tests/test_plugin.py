"""What `count` promises, on texts small enough to count by hand and on a large real one."""

from __future__ import annotations

import pydoc_data.topics

import pytest
from plugin import count

from sandbox_worker.sdk import CannotAnswer, Context, TextPayload

TEXT = "The cat sat. The dog didn't!\n\nWhere is the mouse?\n"


def test_a_small_text_is_counted_as_by_hand():
    """Every number of a text of three sentences is the one a person counts."""
    found = count(Context(), TextPayload(TEXT))
    assert (found.characters, found.letters, found.words) == (len(TEXT), 35, 10)
    assert (found.distinct_words, found.sentences, found.paragraphs) == (8, 3, 2)
    assert found.syllables == 10
    assert found.words_per_sentence == 3.33
    assert found.reading_ease == 118.9
    assert [(one.word, one.count) for one in found.most_frequent[:2]] == [("the", 3), ("cat", 1)]


def test_abbreviations_inside_words_end_no_sentence():
    """A dot inside a word or number does not count as the end of a sentence."""
    assert count(Context(), TextPayload("Version 3.11 of e.g.this works. Yes.")).sentences == 2


def test_the_same_text_gives_the_same_answer():
    """Nothing but the text decides: ties between words are broken by the alphabet."""
    text = TextPayload("b a c b a c d")
    assert count(Context(), text) == count(Context(), text)
    assert [one.word for one in count(Context(), text).most_frequent] == ["a", "b", "c", "d"]


def test_a_large_real_text_is_counted():
    """The topics of Python's own help, a few hundred kilobytes, are plain if dry English."""
    text = "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    assert len(text) > 300_000
    found = count(Context(), TextPayload(text))
    assert found.words > 50_000
    assert found.most_frequent[0].word == "the"
    assert 20 < found.reading_ease < 80


@pytest.mark.parametrize("text", ["", "  \n", "3.14 -- 2 + 2!"])
def test_a_text_without_words_has_no_statistics(text: str):
    """The plugin says so instead of dividing by zero."""
    with pytest.raises(CannotAnswer):
        count(Context(), TextPayload(text))


@pytest.mark.parametrize("piece", [".", "a", "a'", "\n", ". "])
def test_a_monotonous_text_costs_no_more_than_another(piece: str):
    """A megabyte of one mark is counted in one pass; a quadratic pattern would never end."""
    count(Context(), TextPayload("word " + piece * (1_000_000 // len(piece)) + "x"))


def test_a_text_of_one_endless_word_is_counted_and_not_repeated():
    """An answer has a bound, so a word without one is not in it."""
    found = count(Context(), TextPayload("a" * 100_000 + " b"))
    assert (found.words, found.distinct_words) == (2, 2)
    assert [one.word for one in found.most_frequent] == ["b"]
