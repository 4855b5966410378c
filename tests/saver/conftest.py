"""A checkpointer on each storage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from memstate_langgraph import MemStateCheckpointer
from tests.stores import PLACES


@pytest.fixture(params=PLACES, ids=lambda place: place.name)
def saver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MemStateCheckpointer]:
    place = request.param
    saver = MemStateCheckpointer(memory=place.store_on(place.storage(tmp_path)))
    yield saver
    saver.close()
