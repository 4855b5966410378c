"""The questions about the items of a LangGraph store that facts and log do not answer."""

from __future__ import annotations

from memstate_langgraph.ops import Op, unchanging


@unchanging
class LastReads(Op[dict[str, float]]):
    """When these items were last read; those never read are missing."""

    ids: tuple[str, ...]


@unchanging
class WasRead(Op[None]):
    """These items were read at this time; None forgets when they were."""

    ids: tuple[str, ...]
    at: float | None
