"""One line of a story, read word by word.

Invariant: what can't be read is refused with its line and column, and with what would have been right there.
"""

import re
from collections.abc import Callable
from typing import Final, TypeVar

from modelyard_events.errors import InvalidValueError
from modelyard_events.ids import ModelName, NodeName
from modelyard_events.names import model_name, node_name
from modelyard_events.sizes import parse_size
from modelyard_services.errors import InvalidRequestError

NUMBER_MAX: Final = 1_000_000
"""Of any figure in a story: beyond it somebody mistyped."""

Read = TypeVar("Read")

_WORD: Final = re.compile(r"\S+")
_REMARK: Final = re.compile(r"(?:^|(?<=\s))#")
_END: Final = "the end of the line"


class ScenarioError(InvalidRequestError):
    """A story can't be read; says where, and what was expected."""


class Words:
    """The words of line `number` of the story `name`, taken from the left; `#` before a word begins a remark."""

    def __init__(self, name: str, number: int, line: str) -> None:
        self.name = name
        self.number = number
        said = _REMARK.split(line, maxsplit=1)[0].rstrip()
        self.text = said.strip()
        self._left = [(found.start() + 1, found.group()) for found in _WORD.finditer(said)]
        self._column = 1
        self._end = len(said) + 1

    @property
    def left(self) -> bool:
        return bool(self._left)

    def take(self, expected: str) -> str:
        """The next word; `expected` says what it should be."""
        if not self._left:
            self._column = self._end
            raise self.wrong(expected, _END)
        self._column, word = self._left.pop(0)
        return word

    def next_is(self, word: str) -> bool:
        """Take the next word if it is `word`."""
        if not self._left or self._left[0][1] != word:
            return False
        self.take(word)
        return True

    def one_of(self, *words: str) -> str:
        """The next word, one of `words`."""
        expected = "one of " + ", ".join(words) if len(words) > 1 else words[0]
        word = self.take(expected)
        if word not in words:
            raise self.wrong(expected, word)
        return word

    def next_is_number(self) -> bool:
        return bool(self._left) and self._left[0][1].isdecimal()

    def count(self, *, most: int = NUMBER_MAX) -> int:
        word = self.take("a whole number")
        # `isdecimal` alone takes Arabic-Indic digits, and `int` refuses texts of 5,000 digits in its own words.
        if not (word.isascii() and word.isdecimal()) or len(word) > len(str(most)) or int(word) > most:
            raise self.wrong(f"a whole number, at most {most}", word)
        return int(word)

    def size(self) -> int:
        return self._read("a size such as 10GiB", lambda word: parse_size(word, field="size"))

    def node(self) -> NodeName:
        return self._read("a node's name", node_name)

    def model(self) -> ModelName:
        return self._read("a model's name", model_name)

    def pair(self) -> tuple[str, str]:
        """The next word as `key=value`."""
        return self._pair(self.take("key=value"))

    def pairs(self) -> dict[str, str]:
        """The next word as `key=value,key=value`."""
        return dict(self._pair(part) for part in self.take("key=value,…").split(","))

    def names(self) -> tuple[str, ...]:
        """The next word as `a,b`."""
        return tuple(self.take("names such as a,b").split(","))

    def rest(self) -> str:
        """All words that are left, as one text."""
        text = " ".join(word for _, word in self._left)
        if self._left:
            self._column = self._left[0][0]
        self._left = []
        return text

    def end(self) -> None:
        """Refuse further words."""
        if self._left:
            raise self.wrong(_END, self.take(_END))

    def wrong(self, expected: str, found: str) -> ScenarioError:
        """The refusal of the word taken last."""
        where = f"{self.name}:{self.number}:{self._column}"
        return ScenarioError(f"{where}: expected {expected}, found {found!r}", field="line", value=self.text)

    def _read(self, expected: str, read: Callable[[str], Read]) -> Read:
        word = self.take(expected)
        try:
            return read(word)
        except InvalidValueError as error:
            raise self.wrong(expected, word) from error

    def _pair(self, word: str) -> tuple[str, str]:
        key, sign, value = word.partition("=")
        if not key or not sign:
            raise self.wrong("key=value", word)
        return key, value
