"""A service with many users: FastAPI, the async door, and a namespace for each user.

Run it with `uvicorn examples.service:app`. Every request is one transaction at most, and no user can reach
another's facts: the namespace comes from who asks, never from what is asked.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse
from langchain_chroma import Chroma
from pydantic import BaseModel

from memstate_langgraph import (
    AsyncInMemoryStorage,
    AsyncMemoryStore,
    ConflictError,
    Constraint,
    Fact,
    HookError,
    LocalEmbeddings,
    VectorStoreSyncHook,
)


class Preference(BaseModel):
    topic: str
    content: str


def user(x_user: Annotated[str, Header(min_length=1, max_length=64)]) -> str:
    return x_user  # put your authentication here


User = Annotated[str, Depends(user)]


def create_app(memory: AsyncMemoryStore) -> FastAPI:
    memory.register_schema("preference", Preference, Constraint(singleton_key="topic"))
    service = FastAPI(title="Preferences")

    @service.exception_handler(ConflictError)
    @service.exception_handler(HookError)
    async def refused(_: Request, error: Exception) -> JSONResponse:
        # nothing was written: a conflict is to be decided anew, a vector store that is down to be tried again
        return JSONResponse({"detail": str(error)}, 409 if isinstance(error, ConflictError) else 503)

    async def own(fact_id: str, who: str) -> Fact:
        fact = await memory.get(fact_id)
        if fact is None or fact.namespace != ("users", who):
            raise HTTPException(404)  # a neighbour's fact does not exist
        return fact

    @service.put("/preferences")
    async def remember(preference: Preference, who: User) -> dict[str, str]:
        return {"id": await memory.commit_model(preference, session_id=who, namespace=("users", who))}

    @service.get("/preferences")
    async def recall(about: str, who: User) -> list[dict[str, object]]:
        found = await memory.search(about, typename="preference", namespace=("users", who))
        return [{"id": hit.fact.id, "score": hit.score, **hit.fact.payload} for hit in found]

    @service.delete("/preferences/{fact_id}", status_code=204)
    async def forget(fact_id: str, who: User) -> None:
        fact = await own(fact_id, who)
        await memory.delete(fact.id, session_id=who, expected_version=fact.version)

    @service.post("/undo")
    async def undo(who: User) -> dict[str, list[str]]:
        return {"touched": await memory.rollback(1, session_id=who, namespace=("users", who))}

    return service


hook = VectorStoreSyncHook(Chroma("service", LocalEmbeddings()), text_field="content")
app = create_app(AsyncMemoryStore(AsyncInMemoryStorage(), hooks=[hook]))
