"""Statistics of a text: sizes, reading ease and the words that occur most.

The reading ease is Flesch's (Journal of Applied Psychology 32, 1948): 206.835 - 1.015 words per
sentence - 84.6 syllables per word; about 60 to 70 is plain English. Syllables are counted as groups
of vowels, with a silent e at the end, which is close enough for a statistic and always the same.
"""

from __future__ import annotations

import re

import msgspec

from sandbox_worker.sdk import CannotAnswer, Context, TextPayload, method

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
# A run of marks is taken once, from its beginning: a text of dots costs no more than another.
_SENTENCE_END = re.compile(r"(?<![.!?\u2026])[.!?\u2026]++(?=[\s\"')\]\u201d\u2019]|$)")
_VOWELS = re.compile(r"[aeiouyà-æè-ïò-öù-ýœ]+")

MOST_FREQUENT = 10
WORD_CHARACTERS_MAX = 64
"""Longer ones are counted and not listed: a text may be one word, and an answer has a bound."""
_TABLE_ENTRIES_MAX = 200_000


class WordCount(msgspec.Struct, forbid_unknown_fields=True):
    """How often one word occurs, in lower case."""

    word: str
    count: int


class TextStatistics(msgspec.Struct, forbid_unknown_fields=True):
    """The answer. `reading_ease` is Flesch's score, rounded to a tenth."""

    characters: int
    letters: int
    words: int
    distinct_words: int
    sentences: int
    paragraphs: int
    syllables: int
    words_per_sentence: float
    reading_ease: float
    most_frequent: list[WordCount]


@method(deterministic=True)
def count(context: Context, text: TextPayload) -> TextStatistics:
    """Count what a text is made of."""
    counts: dict[str, int] = {}
    for word in _WORD.findall(text.text.lower()):
        counts[word] = counts.get(word, 0) + 1
        if len(counts) > _TABLE_ENTRIES_MAX:
            raise CannotAnswer(f"the text has more than {_TABLE_ENTRIES_MAX} different words")
    words = sum(counts.values())
    if not words:
        raise CannotAnswer("the text has no words")
    context.progress(0.5, f"{words} words, {len(counts)} of them different")
    sentences = max(1, len(_SENTENCE_END.findall(text.text)))
    syllables = sum(number * _syllables(word) for word, number in counts.items())
    listed = [entry for entry in counts.items() if len(entry[0]) <= WORD_CHARACTERS_MAX]
    frequent = sorted(listed, key=lambda entry: (-entry[1], entry[0]))[:MOST_FREQUENT]
    return TextStatistics(
        characters=len(text.text),
        letters=sum(number * sum(map(str.isalpha, word)) for word, number in counts.items()),
        words=words,
        distinct_words=len(counts),
        sentences=sentences,
        paragraphs=sum(1 for part in re.split(r"\n\s*\n", text.text) if part.strip()),
        syllables=syllables,
        words_per_sentence=round(words / sentences, 2),
        reading_ease=round(206.835 - 1.015 * words / sentences - 84.6 * syllables / words, 1),
        most_frequent=[WordCount(word, number) for word, number in frequent],
    )


def _syllables(word: str) -> int:
    groups = len(_VOWELS.findall(word))
    silent = groups > 1 and word.endswith("e") and not word.endswith(("le", "ee"))
    return max(1, groups - silent)
