"""An agent that takes orders: a human approves each one, and an order can be taken back.

Run it with `python examples/orders.py`. The graph stops at `interrupt` until somebody answers; the order is
remembered only then, and once, however often the step runs.
"""

from __future__ import annotations

import re
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt
from pydantic import BaseModel, Field

from memstate_langgraph import InMemoryStorage, MemoryStore, MemStateCheckpointer, RememberNode, RollbackNode


class Order(BaseModel):
    item: str
    number: int = Field(gt=0)


class State(TypedDict, total=False):
    said: str
    order: dict[str, Any] | None
    approved: bool


memory = MemoryStore(InMemoryStorage())
memory.register_schema("order", Order)


def understand(state: State) -> State:
    """In the place of a model: `3 pizzas` is an order, anything with `undo` takes the last one back."""
    found = re.search(r"(\d+) (\w+)", state["said"])
    order = {"type": "order", "payload": {"item": found[2], "number": int(found[1])}} if found else None
    return {"order": order, "approved": False}


def what_next(state: State) -> str:
    return "approve" if state.get("order") else "undo" if "undo" in state["said"] else END


def approve(state: State) -> State:
    return {"approved": interrupt(f"Place this order: {state['order']}?") == "yes"}


def approved(state: State) -> list[dict[str, Any]]:
    order = state.get("order")
    return [order] if order and state.get("approved") else []


SCOPE = ("orders", "{user_id}")
graph = StateGraph(State)
graph.add_node("understand", understand)
graph.add_node("approve", approve)
graph.add_node("place", RememberNode(memory, facts=approved, namespace=SCOPE))
graph.add_node("undo", RollbackNode(memory, namespace=SCOPE))
graph.add_edge(START, "understand")
graph.add_conditional_edges("understand", what_next, ["approve", "undo", END])
graph.add_edge("approve", "place")
app = graph.compile(checkpointer=MemStateCheckpointer(memory))


def say(text: str, answer: str | None = None) -> None:
    config: Any = {"configurable": {"thread_id": "table-7", "user_id": "ana"}}
    result = app.invoke({"said": text}, config)
    for asked in result.get("__interrupt__", ()):
        print(f"  {asked.value} {answer}")
        app.invoke(Command(resume=answer), config)
    orders = [fact.payload for fact in memory.query("order", namespace=("orders", "ana"))]
    print(f"{text!r}:", ", ".join(f"{order['number']} {order['item']}" for order in orders))


say("I'd like 3 pizzas", answer="yes")
say("and 40 lemonades", answer="no")
say("and 4 lemonades", answer="yes")
say("undo that")
