"""The cards of a machine without a GPU, as the stand-in driver reads them; a test may change them while all runs."""

import json
import os
from pathlib import Path
from typing import Any

from tests.support.driver import pynvml

HERE = Path(__file__).parent
GIB = 2**30


def card(number: int, *, gib: int = 24, name: str = "NVIDIA L4", **also: Any) -> dict[str, Any]:
    """One card; `also`: `used` by others, `error` of its readings, `mig` its parts."""
    return {"name": name, "uuid": f"GPU-{number:08x}-0000", "total": gib * GIB, **also}


class Cards:
    """A machine's cards, in a file that its processes find by their environment."""

    def __init__(self, path: Path, *cards: dict[str, Any]) -> None:
        self._path = path
        self._machine: dict[str, Any] = {"cards": list(cards), "use": {}, "error": None, "loading": 1}
        self._write()

    def variables(self) -> dict[str, str]:
        """The environment that makes the driver be found."""
        others = [path for path in (os.environ.get("PYTHONPATH"),) if path]
        return {"PYTHONPATH": os.pathsep.join([str(HERE), *others]), pynvml.VARIABLE: str(self._path)}

    def use(self, model: str, size: int) -> None:
        """Processes of `model` use that many bytes of each card that they see."""
        self._machine["use"][model] = size
        self._write()

    def fail(self, error: int | None, *, number: int | None = None) -> None:
        """The card, or without one the whole driver, answers with that error; None mends it."""
        place = self._machine if number is None else self._machine["cards"][number]
        place["error"] = error
        self._write()

    def reload(self) -> None:
        """The driver is loaded anew: it answers only those who begin after that."""
        self._machine["loading"] += 1
        self.fail(None)

    def _write(self) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self._machine))
        new.replace(self._path)
