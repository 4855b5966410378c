"""What vector stores can do beyond LangChain's interface, which leaves filters and listing to each of them.

Found when a hook is made: what a store lacks is reported by `verify()`, and a store that could never keep a
hook's promise is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memstate_langgraph.errors import UnfitVectorStore
from memstate_langgraph.facts import Namespace
from memstate_langgraph.rules import namespace_text


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a hook can ask of its vector store; what it cannot, `verify()` mentions.

    `filters`: a search is narrowed to type and namespace in the store. `lists`: it tells which ids it holds.
    `waits`: its writes can be found when the call returns.
    """

    filters: bool = False
    lists: bool = False
    waits: bool = False

    def __str__(self) -> str:
        told = (("filters", self.filters), ("lists its ids", self.lists), ("waits for writes", self.waits))
        return ", ".join(f"{name}: {'yes' if can else 'no'}" for name, can in told)

    def shortcomings(self) -> tuple[str, ...]:
        """What follows from what is lacking, for people to read."""
        told = (
            (self.filters, "cannot filter by type and namespace, so such a search reads further down its ranking"),
            (self.lists, "cannot list its ids, so only the journal was checked"),
            (self.waits, "is not known to wait for its writes, so a search right after a commit may miss it"),
        )
        return tuple(sentence for can, sentence in told if not can)


EVERYTHING = Capabilities(filters=True, lists=True, waits=True)


class Adapter:
    """An unknown vector store: LangChain's interface and nothing else."""

    capabilities = Capabilities()

    def __init__(self, store: Any) -> None:
        self.store = store

    def where(self, typename: str | None, namespace: Namespace | None) -> dict[str, Any]:  # noqa: ARG002 -- knows no filter
        """Options that narrow a search as far as the store can; flows check every hit again."""
        return {}

    def ids(self) -> list[str] | None:
        """All ids that the store holds, or None if it cannot say."""
        return None

    def deletable(self, ids: Sequence[str]) -> list[str]:
        """Those of these ids that `delete` takes."""
        return list(ids)

    def folder(self) -> Path | None:
        """The folder that only one process may have open, if there is one."""
        return None

    def advice(self, error: Exception) -> str:  # noqa: ARG002 -- knows no error
        """What to do about an error of the store, to follow what it says; empty if nobody knows."""
        return ""


class InMemory(Adapter):
    capabilities = Capabilities(lists=True, waits=True)

    def ids(self) -> list[str]:
        return list(self.store.store)


class Chroma(Adapter):
    capabilities = EVERYTHING

    def where(self, typename: str | None, namespace: Namespace | None) -> dict[str, Any]:
        where = chroma_where(typename, namespace)
        return {} if where is None else {"filter": where}

    def ids(self) -> list[str]:
        return list(self.store.get(include=[])["ids"])

    def folder(self) -> Path | None:
        return chroma_folder(getattr(self.store, "_client", None))

    def advice(self, error: Exception) -> str:
        if "hnsw segment" not in str(error):
            return ""
        where = self.folder() or "its collection"
        return (
            ". Chroma cannot open its index, as when it was killed while it wrote it. Facts and log are not concerned: "
            f"remove {where} while no process has it open, and call repair(), which embeds the facts again"
        )


class Faiss(Adapter):
    # its filter is applied to the nearest few only, so that it would hide facts
    capabilities = Capabilities(lists=True, waits=True)

    def ids(self) -> list[str]:
        return list(self.store.index_to_docstore_id.values())

    def deletable(self, ids: Sequence[str]) -> list[str]:
        # it alone raises on ids that it never got
        held = set(self.ids())
        return [vector_id for vector_id in ids if vector_id in held]


class Qdrant(Adapter):
    # a server in strict mode refuses filters on fields that have no index, and indexes are the owner's to make
    capabilities = Capabilities(lists=True, waits=True)

    def ids(self) -> list[str]:
        return list(self._scrolled())

    def _scrolled(self) -> Iterator[str]:
        client, collection, offset = self.store.client, self.store.collection_name, None
        while True:
            points, offset = client.scroll(
                collection, limit=1000, offset=offset, with_payload=False, with_vectors=False
            )
            yield from (str(point.id) for point in points)
            if offset is None:
                return


KNOWN: dict[str, type[Adapter]] = {
    "InMemoryVectorStore": InMemory,
    "Chroma": Chroma,
    "FAISS": Faiss,
    "QdrantVectorStore": Qdrant,
}
"""By the name of the class or of one it derives from, so that no product has to be imported."""

NEEDED = (
    ("add_documents", "aadd_documents", "add_texts", "aadd_texts"),
    ("delete", "adelete"),
    (
        "similarity_search_with_score",
        "asimilarity_search_with_score",
        "similarity_search_with_relevance_scores",
        "asimilarity_search_with_relevance_scores",
        "_similarity_search_with_relevance_scores",
        "_asimilarity_search_with_relevance_scores",
    ),
)
"""Without one method of each line there is nothing to keep in step; LangChain's own only raise."""


def adapter_of(store: Any) -> Adapter:
    from langchain_core.vectorstores import VectorStore

    for names in NEEDED:
        if not any(getattr(type(store), name, None) not in (None, getattr(VectorStore, name)) for name in names):
            raise UnfitVectorStore(
                f"hook: {type(store).__name__} has no {names[0]}(), so its vectors cannot be kept in step with the "
                "facts; pass a LangChain VectorStore that adds by id, deletes by id and searches with scores"
            )
    for kind in type(store).__mro__:
        if kind.__name__ in KNOWN:
            return KNOWN[kind.__name__](store)
    return Adapter(store)


# --- Chroma's own words


def chroma_where(typename: str | None, namespace: Namespace | None) -> dict[str, Any] | None:
    parts: list[dict[str, Any]] = []
    if typename is not None:
        parts.append({"type": typename})
    if namespace is not None:
        parts.append({"namespace": namespace_text(namespace)})
    if len(parts) < 2:
        return parts[0] if parts else None
    return {"$and": parts}


def chroma_folder(client: Any) -> Path | None:
    """The folder of a `PersistentClient`; other clients have none, or one that a server looks after."""
    settings = client.get_settings() if hasattr(client, "get_settings") else None
    if settings is None or not settings.is_persistent:
        return None
    return Path(settings.persist_directory).resolve()
