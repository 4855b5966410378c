"""Documents that live: added in pieces, replaced by a new edition, withdrawn, and brought back.

Run it with `python examples/documents.py`. All pieces of an edition become visible together, so an answer never
mixes two editions, also when the embedding fails half way.
"""

from __future__ import annotations

from typing import Any

from langchain_chroma import Chroma
from langchain_core.documents import Document
from pydantic import BaseModel

from memstate_langgraph import HookError, InMemoryStorage, LocalEmbeddings, MemoryStore, VectorStoreSyncHook


class Piece(BaseModel):
    document: str
    edition: int
    content: str


class Vectors(Chroma):
    up = True

    def add_documents(self, documents: list[Document], **options: Any) -> list[str]:
        if not self.up:
            raise ConnectionError("the vector store does not answer")
        return super().add_documents(documents, **options)


class Library:
    def __init__(self, memory: MemoryStore) -> None:
        self.memory = memory
        memory.register_schema("piece", Piece)

    def publish(self, document: str, edition: int, text: str) -> None:
        """Put an edition in the place of the one before, in one transaction."""
        with self.memory.transaction(session_id=document, reason=f"edition {edition}") as tx:
            for old in tx.query("piece", {"payload.document": document}):
                tx.delete(old.id)
            for paragraph in text.split("\n"):
                tx.commit_model(Piece(document=document, edition=edition, content=paragraph))

    def withdraw(self, document: str) -> None:
        with self.memory.transaction(session_id=document, reason="withdrawn") as tx:
            for piece in tx.query("piece", {"payload.document": document}):
                tx.delete(piece.id)

    def ask(self, question: str) -> list[str]:
        """What a model would be given to answer from."""
        hits = self.memory.search(question, limit=2, typename="piece")
        return [f"{hit.fact.payload['content']} (edition {hit.fact.payload['edition']})" for hit in hits]


vectors = Vectors("library", LocalEmbeddings())
library = Library(MemoryStore(InMemoryStorage(), hooks=[VectorStoreSyncHook(vectors, text_field="content")]))
QUESTION = "how many days of holiday do I have?"

library.publish("handbook", 1, "Everybody has 25 days of holiday.\nThe office opens at nine.")
print("first edition: ", library.ask(QUESTION))

vectors.up = False
try:
    library.publish("handbook", 2, "Everybody has 30 days of holiday.\nThe office opens at eight.")
except HookError as error:
    print("not published: ", error)
print("still the first:", library.ask(QUESTION))

vectors.up = True
library.publish("handbook", 2, "Everybody has 30 days of holiday.\nThe office opens at eight.")
print("second edition:", library.ask(QUESTION))

library.withdraw("handbook")
print("withdrawn:     ", library.ask(QUESTION))
library.memory.rollback(1, session_id="handbook")
print("brought back:  ", library.ask(QUESTION))
