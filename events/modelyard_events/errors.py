"""The one error events may raise: a value that can't be what its field asks for.

Invariant: an error names the field and the value, so that a user can mend it without reading code.
"""


class InvalidValueError(ValueError):
    """A value that its field refuses.

    Attributes:
        field: where the value stood (`vram_budget`, `node_selector`).
        value: what was given, as text.
        problem: what is wrong with it and what would be right.
    """

    def __init__(self, field: str, value: object, problem: str) -> None:
        self.field = field
        self.value = value
        self.problem = problem
        super().__init__(f"{field}: {value!r} {problem}")
