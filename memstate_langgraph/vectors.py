"""Hooks that keep a vector store in step with the facts, over any LangChain `VectorStore`.

A hook says which text of a fact is embedded and speaks to the vector store. When vectors are written,
shown and removed is decided in `flows`, by the protocol that CONTRIBUTING describes.

Whoever queries the vector store directly sees also vectors that are being written or not yet removed.
Their metadata carries `fact_id`, `type`, `namespace` and the chosen fields.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memstate_langgraph.adapters import Adapter, Capabilities, adapter_of
from memstate_langgraph.errors import HookError, ValidationFailed
from memstate_langgraph.facts import Fact, Namespace
from memstate_langgraph.folders import hold
from memstate_langgraph.rules import ITEM_TYPE, canonical, check_text, namespace_text

if TYPE_CHECKING:
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import VectorStore


@dataclass(frozen=True, slots=True)
class Text:
    """What of a fact goes into the vector store."""

    text: str
    metadata: tuple[tuple[str, str | int | float | bool], ...]


Hits = list[tuple[str, float]]
"""Vector ids and their relevance, best first."""

VECTOR_ID = "memstate_vector_id"


class VectorStoreSyncHook:
    """Keeps a LangChain vector store in step with facts, atomically with their commit.

    The text is `payload[text_field]`, or what `text_formatter(fact)` returns; a fact without text is kept
    but not searchable. `metadata_fields` are payload fields copied to the vector's metadata. Without
    `target_types` all types are embedded.

    Seconds: `lease` is how long preparing one transaction's vectors may take before it is given up;
    `grace` how long a replaced vector stays for searches that began before; one that takes longer begins
    again; `timeout` how long a search may take in all, with None as long as it likes, in the caller's own
    thread; `late` how long after a failed write its vectors may still arrive and are removed again.
    `name` tells collections apart in the store's books; give one if two hooks would share theirs.
    """

    doors = frozenset({"sync", "async"})

    def __init__(
        self,
        vector_store: VectorStore,
        text_field: str | None = None,
        metadata_fields: Sequence[str] = (),
        target_types: Sequence[str] | None = None,
        text_formatter: Callable[[Fact], str | None] | None = None,
        *,
        name: str | None = None,
        lease: float = 120.0,
        grace: float = 60.0,
        timeout: float | None = 30.0,
        late: float = 300.0,
    ) -> None:
        if (text_field is None) == (text_formatter is None):
            raise ValidationFailed("hook: give either text_field or text_formatter, which say what text to embed")
        for label, seconds in (("lease", lease), ("grace", grace), ("late", late)):
            check_seconds(label, seconds)
        if timeout is not None and not check_seconds("timeout", timeout):
            raise ValidationFailed("hook: timeout must be more than 0 seconds, or None for a search without end")
        if isinstance(metadata_fields, str) or isinstance(target_types, str):
            raise ValidationFailed("hook: metadata_fields and target_types are lists of names, not one string")
        self.vector_store = vector_store
        self.adapter = self._adapter()
        folder = self.adapter.folder()
        self._folder = None if folder is None else hold(folder)
        self.text_field = text_field
        self.metadata_fields = tuple(metadata_fields)
        self.target_types = None if target_types is None else frozenset(target_types)
        self.text_formatter = text_formatter
        self.name = name if name is not None else self._default_name()
        check_text(self.name, "hook name")
        self.lease, self.grace, self.timeout, self.late = lease, grace, timeout, late
        # LangChain warns of relevance scores outside 0..1, which some distances give; order is what counts.
        # Once and for all: to do and undo it around each search is not safe among threads and tasks.
        warnings.filterwarnings("ignore", message="Relevance scores must be between")

    def _adapter(self) -> Adapter:
        return adapter_of(self.vector_store)

    @property
    def capabilities(self) -> Capabilities:
        return self.adapter.capabilities

    def _default_name(self) -> str:
        collection = getattr(self.vector_store, "_collection_name", None) or getattr(
            self.vector_store, "collection_name", None
        )
        kind = type(self.vector_store).__name__
        return f"{kind}:{collection}" if isinstance(collection, str) else kind

    # --- facts to texts

    def embeds(self, typename: str) -> bool:
        """Whether facts of this type may have a text; the items of a LangGraph store only where they are named."""
        return typename != ITEM_TYPE if self.target_types is None else typename in self.target_types

    def text_of(self, fact: Fact) -> Text | None:
        """What to embed for a fact, or None if it is not to be found by meaning."""
        if not self.embeds(fact.type):
            return None
        try:
            value = self.text_formatter(fact) if self.text_formatter else fact.payload.get(str(self.text_field))
            if value is None:
                return None
            text = value if isinstance(value, str) else canonical(value)
        except Exception as error:
            raise HookError(
                f"hook {self.name!r}: no text for fact {fact.id} ({type(error).__name__}: {error})"
            ) from error
        if not text.strip():
            return None
        metadata: dict[str, str | int | float | bool] = {}
        for name in self.metadata_fields:
            field = fact.payload.get(name)
            if field is not None:
                metadata[name] = field if isinstance(field, str | int | float | bool) else canonical(field)
        metadata.update(fact_id=fact.id, type=fact.type, namespace=namespace_text(fact.namespace))
        return Text(text, tuple(metadata.items()))

    # --- the vector store, sync and async; the async methods are LangChain's own

    def upsert(self, items: Sequence[tuple[str, Text]]) -> None:
        self.vector_store.add_documents(documents(items), ids=[vector_id for vector_id, _ in items])

    async def aupsert(self, items: Sequence[tuple[str, Text]]) -> None:
        await self.vector_store.aadd_documents(documents(items), ids=[vector_id for vector_id, _ in items])

    def delete(self, ids: Sequence[str]) -> None:
        if ids := self.adapter.deletable(ids):
            self.vector_store.delete(ids)

    async def adelete(self, ids: Sequence[str]) -> None:
        if ids := self.adapter.deletable(ids):
            await self.vector_store.adelete(ids)

    def search(self, query: str, k: int, typename: str | None, namespace: Namespace | None) -> Hits:
        options = self.adapter.where(typename, namespace)
        try:
            found = self.vector_store.similarity_search_with_relevance_scores(query, k, **options)
        except NotImplementedError:  # a store that has no scale of its own returns similarities
            found = self.vector_store.similarity_search_with_score(query, k, **options)
        return hits(found)

    async def asearch(self, query: str, k: int, typename: str | None, namespace: Namespace | None) -> Hits:
        options = self.adapter.where(typename, namespace)
        try:
            found = await self.vector_store.asimilarity_search_with_relevance_scores(query, k, **options)
        except NotImplementedError:
            found = await self.vector_store.asimilarity_search_with_score(query, k, **options)
        return hits(found)

    def ids(self) -> list[str] | None:
        """All ids that the vector store holds, or None if it cannot say."""
        return self.adapter.ids()

    async def aids(self) -> list[str] | None:
        import asyncio

        return await asyncio.to_thread(self.ids)

    def embed(self, texts: Sequence[str], query: str) -> tuple[list[list[float]], list[float]]:
        """The embeddings of texts that the vector store does not hold any more, and of a query."""
        embeddings = self._embeddings()
        return embeddings.embed_documents(list(texts)), embeddings.embed_query(query)

    async def aembed(self, texts: Sequence[str], query: str) -> tuple[list[list[float]], list[float]]:
        embeddings = self._embeddings()
        return await embeddings.aembed_documents(list(texts)), await embeddings.aembed_query(query)

    def _embeddings(self) -> Embeddings:
        found: Embeddings | None = getattr(self, "_embedding", None) or self.vector_store.embeddings
        if found is None:
            raise TypeError("its vector store does not say how it embeds, so texts of the past cannot be ranked")
        return found


class AsyncVectorStoreSyncHook(VectorStoreSyncHook):
    """`VectorStoreSyncHook` for an `AsyncMemoryStore` only, over a vector store that has no sync door."""

    doors = frozenset({"async"})


def check_seconds(label: str, seconds: object) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise ValidationFailed(f"hook: {label} must be seconds, not {seconds!r}")
    return seconds


def documents(items: Sequence[tuple[str, Text]]) -> list[Document]:
    from langchain_core.documents import Document

    # The id is in the metadata as well: not every adapter gives it back with its hits.
    return [
        Document(id=vector_id, page_content=text.text, metadata={**dict(text.metadata), VECTOR_ID: vector_id})
        for vector_id, text in items
    ]


def hits(found: Sequence[tuple[Document, float]]) -> Hits:
    return ranked((str(document.metadata.get(VECTOR_ID) or document.id), score) for document, score in found)


def ranked(scored: Iterable[tuple[str, float]]) -> Hits:
    """Best first; a score that is no number ranks last."""
    result = [(vector_id, float(score) if math.isfinite(score) else -math.inf) for vector_id, score in scored]
    return sorted(result, key=lambda hit: -hit[1])
