"""The installation that tests share which do it no harm: two workers, and nobody needs a token."""

from collections.abc import Iterator

import pytest

from tests.support.installation import Installation


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with Installation(tmp_path_factory.mktemp("shared"), "--workers", "2", "--vram", "1GiB") as installation:
        yield installation
