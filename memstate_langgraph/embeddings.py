"""Embeddings that need no server, no key and no download."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from langchain_core.embeddings import Embeddings

from memstate_langgraph.errors import MemoryStoreError


class LocalEmbeddings(Embeddings):
    """Sentence embeddings of 256 numbers by wordllama, whose weights are in its wheel (extra `local`).

    Deterministic, numpy only, tens of thousands of short texts a second; good at words and topics, weaker
    than a large model at paraphrase. The model is loaded at the first use and shared by all instances.
    """

    dimensions = 256

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        if not texts:
            return []
        vectors: list[list[float]] = _model().embed(texts, norm=True).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


@cache
def _model() -> Any:
    import logging

    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        import wordllama
    except ImportError as error:
        raise MemoryStoreError(
            "LocalEmbeddings needs wordllama: pip install 'memstate-langgraph[local]', or pass an embedding of your own"
        ) from error
    finally:
        # wordllama configures the root logger when it is imported; an application's logging is not its to change
        root.setLevel(level)
        root.handlers[:] = handlers
    # load() looks for its tokenizer in a cache folder; the wheel's own folder is laid out like one
    return wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
