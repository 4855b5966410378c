"""Chroma, through langchain-chroma or, for its async client, directly."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from memstate_langgraph.adapters import Adapter, Chroma as ChromaAdapter, chroma_folder, chroma_where
from memstate_langgraph.errors import ValidationFailed
from memstate_langgraph.facts import Fact, Namespace
from memstate_langgraph.folders import hold
from memstate_langgraph.vectors import (
    VECTOR_ID,
    AsyncVectorStoreSyncHook,
    Hits,
    Text,
    VectorStoreSyncHook,
    ranked,
)

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

COSINE: Any = {"hnsw": {"space": "cosine"}}


def default_embedding() -> Embeddings:
    """`LocalEmbeddings` where the extra `local` is installed, else Chroma's own, which downloads a model."""
    if importlib.util.find_spec("wordllama"):
        from memstate_langgraph.embeddings import LocalEmbeddings

        return LocalEmbeddings()
    return _ChromaDefault()


def _ChromaDefault() -> Embeddings:  # noqa: N802 -- a class made where chromadb is loaded
    from chromadb.utils.embedding_functions import DefaultEmbeddingFunction
    from langchain_core.embeddings import Embeddings

    class ChromaDefault(Embeddings):
        def __init__(self) -> None:
            self._embed: Any = DefaultEmbeddingFunction()

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [[float(number) for number in vector] for vector in self._embed(texts)]

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

    return ChromaDefault()


class ChromaSyncHook(VectorStoreSyncHook):
    """Keeps a Chroma collection in step with facts; made with cosine distance if it does not exist.

    Without `embedding`, texts are embedded by `LocalEmbeddings` where the extra `local` is installed, else
    by Chroma's default model, which is downloaded at its first use. Chroma's `PersistentClient` is for one
    process; for several, run `chroma run` and pass an `HttpClient`.
    """

    def __init__(
        self,
        client: Any,
        collection_name: str,
        text_field: str | None = None,
        metadata_fields: Sequence[str] = (),
        embedding: Embeddings | None = None,
        target_types: Sequence[str] | None = None,
        text_formatter: Callable[[Fact], str | None] | None = None,
        **options: Any,
    ) -> None:
        from langchain_chroma import Chroma

        if inspect.iscoroutinefunction(getattr(client, "get_or_create_collection", None)):
            raise ValidationFailed("ChromaSyncHook: this client is async; take AsyncChromaSyncHook")
        folder = chroma_folder(client)
        held = None if folder is None else hold(folder)  # before anything is written to it
        store = Chroma(
            client=client,
            collection_name=collection_name,
            embedding_function=embedding or default_embedding(),
            collection_configuration=COSINE,
        )
        super().__init__(store, text_field, metadata_fields, target_types, text_formatter, **options)
        del held  # the hook holds it from here on


class AsyncChromaSyncHook(AsyncVectorStoreSyncHook):
    """`ChromaSyncHook` for an `AsyncMemoryStore`; also takes a `chromadb.AsyncHttpClient`."""

    def __init__(
        self,
        client: Any,
        collection_name: str,
        text_field: str | None = None,
        metadata_fields: Sequence[str] = (),
        embedding: Embeddings | None = None,
        target_types: Sequence[str] | None = None,
        text_formatter: Callable[[Fact], str | None] | None = None,
        **options: Any,
    ) -> None:
        self._client = client
        self._collection_name = collection_name
        self._embedding = embedding or default_embedding()
        self._collection: Any = None
        options.setdefault("name", f"Chroma:{collection_name}")
        # the collection itself is made at the first use, where it can be awaited
        store: Any = None
        super().__init__(store, text_field, metadata_fields, target_types, text_formatter, **options)

    def _adapter(self) -> Adapter:
        return ChromaAdapter(self)

    async def _chroma(self) -> Any:
        if self._collection is None:
            self._collection = await _awaited(
                self._client.get_or_create_collection(
                    name=self._collection_name, embedding_function=None, configuration=COSINE
                )
            )
        return self._collection

    async def aupsert(self, items: Sequence[tuple[str, Text]]) -> None:
        collection = await self._chroma()
        texts = [text.text for _, text in items]
        await _awaited(
            collection.upsert(
                ids=[vector_id for vector_id, _ in items],
                embeddings=await self._embedding.aembed_documents(texts),
                documents=texts,
                metadatas=[{**dict(text.metadata), VECTOR_ID: vector_id} for vector_id, text in items],
            )
        )

    async def adelete(self, ids: Sequence[str]) -> None:
        await _awaited((await self._chroma()).delete(ids=list(ids)))

    async def asearch(self, query: str, k: int, typename: str | None, namespace: Namespace | None) -> Hits:
        collection = await self._chroma()
        found = await _awaited(
            collection.query(
                query_embeddings=[await self._embedding.aembed_query(query)],
                n_results=k,
                where=chroma_where(typename, namespace),
                include=["distances"],
            )
        )
        return ranked(
            (vector_id, 1.0 - float(distance))
            for vector_id, distance in zip(found["ids"][0], found["distances"][0], strict=True)
        )

    async def aids(self) -> list[str] | None:
        return list((await _awaited((await self._chroma()).get(include=[])))["ids"])


async def _awaited(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result
