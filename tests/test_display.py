"""What a notebook shows: tables that are escaped, pictures that are XML and say what happened."""

from __future__ import annotations

import operator
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from IPython.core.interactiveshell import InteractiveShell
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, StateGraph

from memstate_langgraph import (
    AsyncInMemoryStorage,
    AsyncMemoryStore,
    Fact,
    InMemoryStorage,
    MemoryStore,
    MemStateCheckpointer,
    ScoredFact,
    ValidationFailed,
)
from memstate_langgraph.display import checkpoint_tree, table, timeline
from memstate_langgraph.pictures import Point, lanes
from tests.conftest import Opener

NASTY = "<script>alert('\x1b[2J')</script> & more\u202e"
SVG = "{http://www.w3.org/2000/svg}"


def texts(picture: Any) -> list[str]:
    """The words of an SVG; parsing it shows that it is well-formed."""
    return [node.text or "" for node in ET.fromstring(picture.svg).iter(f"{SVG}text")]


@pytest.fixture
def small() -> MemoryStore:
    memory = MemoryStore(InMemoryStorage())
    memory.commit(Fact(id="a", type="note", payload={"content": "one", "stars": 3}), session_id="s")
    memory.update("a", {"content": "two"}, actor="ana", reason="a typo")
    return memory


def test_facts_and_entries_show_themselves(small: MemoryStore) -> None:
    html = small.query()[0]._repr_html_()
    for part in ("note", "version 2", "content", "two", "<td>3</td>"):
        assert part in html
    (entry, *_) = small.log()
    for part in ("UPDATE", "content: one → two", "ana a typo"):
        assert part in entry._repr_html_()
    assert "score 0.500" in ScoredFact(small.query()[0], 0.5)._repr_html_()


def test_a_store_shows_counts_and_the_last_changes(open_store: Opener) -> None:
    memory = open_store()
    memory.commit(Fact(type="note", payload={"content": "one"}))
    html = memory._repr_html_()
    assert "live facts of type note</td><td>1</td>" in html
    assert "content: one" in html


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    memory = MemoryStore(InMemoryStorage())
    memory.close()
    assert "closed" in memory._repr_html_()


async def test_a_store_shows_itself_in_a_running_loop() -> None:
    memory = AsyncMemoryStore(AsyncInMemoryStorage())
    await memory.commit(Fact(type="note", payload={"content": "one"}))
    assert "AsyncMemoryStore on AsyncInMemoryStorage" in memory._repr_html_()
    assert "content: one" in memory._repr_html_()
    assert "note: one" in texts(timeline(memory))


def test_what_a_stranger_wrote_is_escaped_everywhere() -> None:
    memory = MemoryStore(InMemoryStorage())
    memory.commit(Fact(type=NASTY, payload={NASTY: NASTY}), session_id=NASTY, actor=NASTY)
    shown = [memory._repr_html_(), memory.query()[0]._repr_html_(), memory.log()[0]._repr_html_()]
    shown += [table(memory.query(), NASTY).html, table(memory.log()).html, timeline(memory).svg]
    for html in shown:
        assert "<script" not in html
        assert "\x1b" not in html
        assert "\u202e" not in html
    texts(timeline(memory, NASTY))


def test_a_table_has_a_column_for_each_field(small: MemoryStore) -> None:
    small.commit(Fact(type="task", payload={"done": False, "type": "x"}, namespace=("memories", "ana")))
    html = table(small.query()).html
    heads = [node.text for node in ET.fromstring(html).iter("th")]
    assert heads == ["type", "content", "stars", "done", "payload.type", "namespace", "session", "version"]
    many = table([Fact(type="t", payload={str(i): i for i in range(9)})]).html
    assert [node.text for node in ET.fromstring(many).iter("th")] == ["type", "payload", "version"]
    with pytest.raises(ValidationFailed, match="facts, hits of a search or log entries"):
        table([1])  # type: ignore[list-item]


def test_an_extension_shows_lists_as_tables(small: MemoryStore) -> None:
    shell: Any = InteractiveShell()  # type: ignore[no-untyped-call]
    assert "text/html" not in shell.display_formatter.format(small.query())[0]
    shell.run_line_magic("load_ext", "memstate_langgraph.display")
    assert "<td" in shell.display_formatter.format(small.query())[0]["text/html"]
    assert "UPDATE" in shell.display_formatter.format(small.log())[0]["text/html"]
    for other in ([], [1], [small.query()[0], 1]):
        assert "text/html" not in shell.display_formatter.format(other)[0]
    shell.run_line_magic("unload_ext", "memstate_langgraph.display")
    assert "text/html" not in shell.display_formatter.format(small.query())[0]


# --- pictures


class State(TypedDict):
    said: Annotated[list[str], operator.add]


def forked(memory: MemoryStore) -> tuple[MemStateCheckpointer, Any]:
    """A conversation that was taken up again from its middle, and remembered something there."""

    def remember(state: State) -> dict[str, list[str]]:
        memory.commit(Fact(type="note", payload={"content": f"heard {state['said'][-1]}"}), session_id="t")
        return {"said": ["aha"]}

    graph = StateGraph(State)
    graph.add_node("remember", remember)
    graph.add_edge(START, "remember")
    saver = MemStateCheckpointer(memory)
    app: Any = graph.compile(checkpointer=saver)
    config: RunnableConfig = {"configurable": {"thread_id": "t"}}
    app.invoke({"said": ["hello"]}, config)
    middle = next(state for state in app.get_state_history(config) if state.next == ("remember",))
    app.invoke(None, app.update_state(middle.config, {"said": ["other"]}))
    return saver, app


def test_the_tree_shows_forks_words_and_facts() -> None:
    memory = MemoryStore(InMemoryStorage())
    saver, _ = forked(memory)
    picture = checkpoint_tree(saver, "t")
    root = ET.fromstring(picture.svg)
    assert len(list(root.iter(f"{SVG}circle"))) == len(memory.query("langgraph.checkpoint"))
    assert len({node.get("cx") for node in root.iter(f"{SVG}circle")}) == 2
    assert repr(picture) == f"<{len(memory.query('langgraph.checkpoint'))} checkpoints on 2 branches>"
    words = texts(picture)
    assert "commit note: heard hello" in words
    assert words.index("commit note: heard hello") < words.index("commit note: heard other")
    assert words.count("said: aha") == 2


def test_an_empty_thread_and_log_have_pictures_too() -> None:
    memory = MemoryStore(InMemoryStorage())
    assert "no checkpoints" in texts(checkpoint_tree(MemStateCheckpointer(memory), "nobody"))
    assert "the log is empty" in texts(timeline(memory))


def test_lanes_follow_the_first_child() -> None:
    points = [
        Point(id_, parent, "", "") for id_, parent in [("1", None), ("2", "1"), ("3", "1"), ("4", "3"), ("5", "2")]
    ]
    assert lanes(points) == {"1": 0, "2": 0, "3": 1, "4": 1, "5": 0}


def test_the_timeline_shows_each_version_and_the_end(small: MemoryStore, tmp_path: Path) -> None:
    small.delete("a")
    small.commit(Fact(type="note", payload={"content": "three"}))
    small.rollback(1)
    picture = timeline(small)
    assert repr(picture) == "<2 facts over 5 transactions>"
    told = [node.text or "" for node in ET.fromstring(picture.svg).iter(f"{SVG}title")]
    assert [line.split(",")[0].split(" of")[0] for line in told] == [
        "entry 1: commit",
        "entry 2: update",
        "entry 3: delete",
        "entry 4: commit",
        "entry 5: rollback",
    ]
    assert repr(timeline(small, limit=1)) == "<1 facts over 1 transactions>"
    assert repr(timeline(small, facts=1)) == "<1 facts over 2 transactions>"
    picture.save(tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").read_text(encoding="utf-8") == picture.svg


def test_pictures_do_not_change_when_drawn_again(small: MemoryStore) -> None:
    assert timeline(small).svg == timeline(small).svg


@pytest.mark.parametrize("wrong", [None, "state.db", MemoryStore(InMemoryStorage())])
def test_the_wrong_thing_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationFailed, match="checkpoint_tree: takes a MemStateCheckpointer"):
        checkpoint_tree(wrong, "t")
    if not isinstance(wrong, MemoryStore):
        with pytest.raises(ValidationFailed, match="timeline: takes a MemoryStore"):
            timeline(wrong)
