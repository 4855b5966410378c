"""The checkpointer under the name that MemState gave it."""

from memstate_langgraph.saver import MemStateCheckpointer

__all__ = ["MemStateCheckpointer"]
