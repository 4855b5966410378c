"""What can go wrong. Every error that a caller meets derives from `MemoryStoreError`."""

from __future__ import annotations


class MemoryStoreError(Exception):
    """Base of all errors of this package."""


class ValidationFailed(MemoryStoreError):
    """The input cannot be stored or asked for; the message names the type and the field.

    Raised before anything is written.
    """


class ConflictError(MemoryStoreError):
    """The change contradicts what is stored: immutable type, other version, a later change of someone else.

    Nothing was written. Reading again and deciding anew is the way out.
    """


class FactNotFound(MemoryStoreError):
    """There is no live fact with this id."""


class UpcastFailed(MemoryStoreError):
    """A stored payload cannot be read as its type is now; the message names the fact, both versions and the reason.

    Nothing was written. What is stored is as it was: mend the upcast and read again.
    """


class HookError(MemoryStoreError):
    """A hook refused or failed, so the transaction was not committed; `__cause__` holds the reason."""


class UnfitVectorStore(ValidationFailed):
    """The vector store lacks what a hook needs to keep its promise; the message names what."""


class VectorStoreInUse(HookError):
    """Another process has the folder of this embedded vector store open; the message says what to do."""


class LeaseLost(HookError):
    """The vectors were prepared for longer than their lease and were given up. Nothing was committed."""


class StorageError(MemoryStoreError):
    """The storage failed or is not what it should be; the message says which file or server."""


class StorageBusy(StorageError):
    """Other writers held the storage for longer than the busy timeout. Nothing was written; try again."""


class OutcomeUnknown(StorageError):
    """The connection was lost while a transaction was committed, and the server could not be asked about it.

    All of the transaction was written or nothing. Look before trying again, or try again with an idempotency key.
    """


class StorageClosed(StorageError):
    """The storage was closed."""


class DamagedCheckpoint(StorageError):
    """A stored checkpoint cannot be read back whole; the message names the thread and the checkpoint."""


class ScopeError(MemoryStoreError):
    """The runtime config does not say whose memory this is, so nothing was read or written."""
