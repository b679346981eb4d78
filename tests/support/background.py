"""Something that goes on in a thread of its own for as long as a test has it open."""

import threading
from abc import ABC, abstractmethod
from typing import Self


class Background(ABC):
    """Use as a context manager; `run` ends soon after `stop` is set."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._thread = threading.Thread(target=self.run)

    @abstractmethod
    def run(self) -> None: ...

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join()
