"""From options to an open store: the storage of a URL, and the hook of its vectors where one is named."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from memstate_langgraph.backends.urls import storage_from
from memstate_langgraph.errors import ValidationFailed
from memstate_langgraph.memory import MemoryStore
from memstate_langgraph.ops import Counts
from memstate_langgraph.overview import overview
from memstate_langgraph.past import Moment
from memstate_langgraph.vectors import VectorStoreSyncHook

StorageArgument = Annotated[str, typer.Argument(metavar="STORAGE", help="A URL, or the path of a SQLite file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SessionOption = Annotated[str | None, typer.Option("--session", "-s", help="Only of this session.")]
NamespaceOption = Annotated[
    list[str] | None, typer.Option("--namespace", "-n", help="Only of this namespace; repeat it for each part.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
ChromaOption = Annotated[
    Path | None, typer.Option("--chroma", metavar="FOLDER", help="The folder of the Chroma that holds the vectors.")
]
CollectionOption = Annotated[str | None, typer.Option("--collection", metavar="NAME", help="Its collection.")]
TextFieldOption = Annotated[
    str | None, typer.Option("--text-field", metavar="FIELD", help="The payload field that is embedded.")
]
HookOption = Annotated[
    str | None,
    typer.Option(
        "--hook",
        metavar="MODULE:NAME",
        help="A hook of yours, or a function that makes it, for any other vector store or embedding.",
    ),
]


VECTOR_OPTIONS = "--chroma FOLDER --collection NAME --text-field FIELD, or --hook MODULE:NAME"


@dataclass(frozen=True, slots=True)
class Vectors:
    """How the user said where the vectors are."""

    chroma: ChromaOption = None
    collection: CollectionOption = None
    text_field: TextFieldOption = None
    hook: HookOption = None

    @property
    def named(self) -> bool:
        return self != Vectors()

    def require(self, why: str) -> None:
        if not self.named:
            raise ValidationFailed(f"{why}: say where they are with {VECTOR_OPTIONS}")

    def open(self) -> VectorStoreSyncHook | None:
        if not self.named:
            return None
        if self.hook is not None:
            if self != Vectors(hook=self.hook):
                raise ValidationFailed("--hook brings its own vector store; leave the other vector options out")
            return _imported(self.hook)
        if self.chroma is None or self.collection is None or self.text_field is None:
            raise ValidationFailed("--chroma, --collection and --text-field belong together; give all three")
        if not (self.chroma / "chroma.sqlite3").is_file():
            raise ValidationFailed(f"--chroma: {self.chroma} is no folder of Chroma; name its persist_directory")
        return self._of_chroma(str(self.chroma.resolve()), self.collection, self.text_field)

    def _of_chroma(self, folder: str, collection: str, text_field: str) -> VectorStoreSyncHook:
        from chromadb import PersistentClient
        from langchain_chroma import Chroma

        from memstate_langgraph.integrations.chroma import default_embedding

        try:
            client = PersistentClient(folder)
            known = {found.name for found in client.list_collections()}
        except Exception as error:
            raise ValidationFailed(f"--chroma: {folder} cannot be read ({type(error).__name__}: {error})") from error
        if collection not in known:
            raise ValidationFailed(
                f"--collection: {folder} has no collection {collection!r}, only {', '.join(sorted(known)) or 'none'}"
            )
        store = Chroma(collection, default_embedding(), client=client)
        return VectorStoreSyncHook(store, text_field=text_field)


def with_vectors(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, instead of its parameter `vectors`, the options that say where they are."""
    own, options = inspect.signature(command, eval_str=True), inspect.signature(Vectors, eval_str=True).parameters

    @wraps(command)
    def called(**given: Any) -> None:
        told = {name: given.pop(name) for name in options}
        command(**given, vectors=Vectors(**told))

    others = [parameter for parameter in own.parameters.values() if parameter.name != "vectors"]
    called.__signature__ = own.replace(parameters=[*others, *options.values()])  # type: ignore[attr-defined]  # read by typer
    return called


def _imported(name: str) -> VectorStoreSyncHook:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValidationFailed(f"--hook: {name!r} is not of the form MODULE:NAME")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
        hook = found if isinstance(found, VectorStoreSyncHook) else found()
    except Exception as error:
        raise ValidationFailed(f"--hook: {name} cannot be had ({type(error).__name__}: {error})") from error
    finally:
        sys.path.pop(0)
    if not isinstance(hook, VectorStoreSyncHook):
        raise ValidationFailed(f"--hook: {name} is a {type(hook).__name__}, not a VectorStoreSyncHook")
    return hook


@contextmanager
def opened(storage: str, vectors: Vectors | None = None) -> Iterator[MemoryStore]:
    """A store on a storage that exists; with a hook only if the journal knows its collection."""
    with MemoryStore(storage_from(storage, must_exist=True)) as memory:
        hook = None if vectors is None else vectors.open()
        if hook is not None:
            _refuse_stranger(hook, counts_of(memory))
            memory.add_hook(hook)
        yield memory


def counts_of(memory: MemoryStore) -> Counts:
    return memory.storage.run(overview()).counts


def collections_of(counts: Counts) -> list[str]:
    return sorted({collection for collection, _ in counts.vectors})


def _refuse_stranger(hook: VectorStoreSyncHook, counts: Counts) -> None:
    """To repair a collection under a wrong name would delete all vectors that it holds."""
    known = collections_of(counts)
    if known and hook.name not in known:
        raise ValidationFailed(
            f"the storage keeps no vectors in a collection {hook.name!r}; it knows {', '.join(map(repr, known))}. "
            "Give the options that the application opens it with, or its hook"
        )
    if not known and hook.ids():
        raise ValidationFailed(
            f"the storage keeps no vectors at all, but {hook.name!r} holds some: they belong to another storage"
        )


def moment_of(text: str) -> Moment:
    """A position of the log, a time (UTC unless it says otherwise), or THREAD/CHECKPOINT."""
    if text.isdecimal():
        return int(text)
    thread_id, slash, checkpoint_id = text.rpartition("/")
    if slash:
        return {"configurable": {"thread_id": thread_id, "checkpoint_ns": "", "checkpoint_id": checkpoint_id}}
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValidationFailed(
            f"{text!r} is no moment; give a position of the log such as 17, a time such as '2026-01-31 12:00', or a "
            "checkpoint as THREAD/CHECKPOINT"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
