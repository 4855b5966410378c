"""The same writes with and without the package, over a vector store that fails: what can be found afterwards?

Run it with `python examples/drift.py`. It keeps everything in memory. The notebook
`notebooks/3_what_goes_wrong_without_it.ipynb` tells the same at length.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from langchain_chroma import Chroma
from langchain_core.documents import Document

from memstate_langgraph import Fact, HookError, InMemoryStorage, LocalEmbeddings, MemoryStore, VectorStoreSyncHook

# (what to do, with which fact, its text, does the vector store answer)
WRITES = [
    ("put", "food", "Ana is a vegetarian", True),
    ("put", "food", "Ana eats fish again", False),
    ("put", "travel", "Ana prefers trains", True),
    ("delete", "travel", "", False),
    ("put", "music", "Ana plays the cello", False),
]


class Vectors(Chroma):
    up = True

    def add_documents(self, documents: list[Document], **options: Any) -> list[str]:
        self.answer()
        return super().add_documents(documents, **options)

    def delete(self, ids: list[str] | None = None, **options: Any) -> None:
        self.answer()
        super().delete(ids, **options)

    def answer(self) -> None:
        if not self.up:
            raise ConnectionError("the vector store does not answer")


def without() -> tuple[dict[str, str], dict[str, str]]:
    sql, vectors = sqlite3.connect(":memory:"), Vectors("without", LocalEmbeddings())
    sql.execute("CREATE TABLE facts (id TEXT PRIMARY KEY, content TEXT)")
    for action, key, text, vectors.up in WRITES:
        try:
            if action == "put":
                sql.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, text))
                vectors.add_documents([Document(text)], ids=[key])
            else:
                sql.execute("DELETE FROM facts WHERE id = ?", (key,))
                vectors.delete([key])
        except ConnectionError:
            pass  # the caller is told, but SQL is ahead already
    held = vectors.get()
    return dict(sql.execute("SELECT id, content FROM facts")), dict(zip(held["ids"], held["documents"], strict=True))


def with_it() -> tuple[dict[str, str], dict[str, str]]:
    vectors = Vectors("with", LocalEmbeddings())
    memory = MemoryStore(InMemoryStorage(), hooks=[VectorStoreSyncHook(vectors, text_field="content")])
    for action, key, text, vectors.up in WRITES:
        try:
            if action == "put":
                memory.commit(Fact(id=key, type="preference", payload={"content": text}))
            else:
                memory.delete(key)  # needs no answer: the vector is invisible at once, and removed later
        except HookError:
            pass  # the caller is told, and nothing has changed
    facts, hits = memory.query(), memory.search("Ana", limit=None)
    return {f.id: f.payload["content"] for f in facts}, {h.fact.id: h.fact.payload["content"] for h in hits}


for name, (facts, found) in {"without": without(), "with memstate_langgraph": with_it()}.items():
    print(f"{name}: {'in step' if facts == found else 'DRIFTED'}")
    for key in sorted(facts.keys() | found.keys()):
        print(f"  {key:7} SQL: {facts.get(key, '-'):22} found: {found.get(key, '-')}")
