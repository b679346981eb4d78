"""What somebody may have meant by a word that is unknown. Pure.

Invariant: a refusal of a word says what would be taken instead.
"""

from collections.abc import Iterable
from difflib import get_close_matches


def meant(word: str, known: Iterable[str]) -> str:
    """The known word closest to `word`, as a question, or all of them where none is close."""
    words = list(known)
    close = get_close_matches(word, words, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(words)}"
