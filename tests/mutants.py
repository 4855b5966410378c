"""Deliberate breakages of the promises, each of which some test must catch: `python -m tests.mutants`.

A checker that never fails proves nothing. Each mutant is one edit of the package in a copy of the project; the
tests named beside it run against the copy and must fail there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Mutant:
    breaks: str
    file: str
    old: str
    new: str
    tests: str

    def apply(self, root: Path) -> None:
        path = root / "memstate_langgraph" / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise SystemExit(f"mutant {self.breaks!r}: {self.old!r} occurs {text.count(self.old)} times in {self.file}")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


HANGS = 180
"""Seconds after which the tests of a mutant are taken to hang. The longest of them need less than a minute."""

CRASH, VECTORS, CONCURRENCY, INPUT, SQLITE, COSTS, SEARCH, REBUILD, ADAPTERS, POSTGRES = (
    f"tests/test_{name}.py"
    for name in (
        "crash",
        "vectors",
        "concurrency",
        "bad_input",
        "sqlite",
        "costs",
        "search",
        "rebuild",
        "adapters",
        "postgres",
    )
)
CORE, TRANSACTION = (f"tests/test_contract.py::Test{area}" for area in ("Core", "Transaction"))

MUTANTS = [
    # the commit protocol
    Mutant("no intent before the upsert", "flows.py", "            yield intend(tuple(Vector(made.vector_id, hook.name, key[1], due=lease) for key, made in fresh.items()))\n", "", CRASH),
    Mutant("vectors are not made live", "flows.py", "    if born and (yield from Activate(born)) != len(born):", "    if born and False:", VECTORS),
    Mutant("no fence", "flows.py", "(yield from Activate(born)) != len(born)", "(yield from Activate(born)) < 0", VECTORS),
    Mutant("old vectors stay live", "flows.py", "        yield from Retire(tuple(seqs.items()), retire_at)\n", "        pass\n", VECTORS),
    Mutant("failed vectors are not given up", "flows.py", "            yield abandon(tuple(made.vector_id for made in prepared.values()), time.time())", "            pass", VECTORS),
    Mutant("expired intents are not reaped", "flows.py", "        yield abandon(None, now)\n", "", CRASH),
    Mutant("no tombstone for a late write", "backends/sql.py", "UPDATE vectors SET state = 'retired', due = ?, late = 1 WHERE", "UPDATE vectors SET state = 'retired', due = ?, late = 0 WHERE", CONCURRENCY),
    Mutant("a failing upsert is ignored", "flows.py", "                yield from self._give_up(prepared)\n                raise HookError(\n                    f\"vector store", "                continue\n                raise HookError(\n                    f\"vector store", VECTORS),
    Mutant("texts are not compared again under the lock", "flows.py", "    unprepared = any(key not in prepared or prepared[key].text != text for key, text in texts.items())", "    unprepared = any(key not in prepared for key in texts)", CONCURRENCY),
    Mutant("a veto is ignored", "flows.py", "                raise HookError(f\"a hook refused the change: {error}\") from error", "                pass", CORE),
    Mutant("a fact without text keeps its old vector", "backends/sql.py", "WHERE fact_id = ? AND state = 'live' AND born < ?", "WHERE fact_id = ? AND state = 'live' AND born < ? AND 0", VECTORS),
    Mutant("replaced vectors have no grace time", "flows.py", "prepared, approved, now + grace, now\n", "prepared, approved, now, now\n", VECTORS),
    Mutant("collection takes live vectors", "backends/sql.py", "due <= ? AND state <> 'live' AND state <> 'intended'", "(due <= ? OR due IS NULL) AND state <> 'intended'", CRASH),
    Mutant("a preview is trusted although the log moved on", "flows.py", "(yield from LastSeq()) == previewed.at:", "(yield from LastSeq()) >= 0:", VECTORS),
    # search
    Mutant("search without a snapshot", "flows.py", "hydrate(tuple(vector_id for vector_id, _ in hits), at)", "hydrate(tuple(vector_id for vector_id, _ in hits), 10**15)", VECTORS),
    Mutant("search shows retired vectors", "backends/sql.py", " AND v.born <= ? AND (v.died IS NULL OR v.died > ?)", " AND v.born <= ? AND ? > 0", VECTORS),
    Mutant("search does not widen", "flows.py", "                if len(hits) < k or below or", "                if True or below or", VECTORS),
    Mutant("search trusts the store's filter", "flows.py", "                        and answers(fact, scope)\n", "", VECTORS),
    Mutant("no score threshold", "flows.py", "                        and (threshold is None or score >= threshold)\n", "", VECTORS),
    Mutant("a slow search answers from what is gone", "flows.py", "            if hook.grace <= 0 or time.monotonic() - began < hook.grace:", "            if True:", CONCURRENCY),
    Mutant("intents never expire", "flows.py", "            lease = time.time() + hook.lease\n", "            lease = time.time() + 10**9\n", CRASH),
    Mutant("a second collector forgets tombstones", "backends/sql.py", "(state = 'tombstone' AND due <= ?)", "(state = 'tombstone' AND ? > 0)", CONCURRENCY),
    Mutant("verify finds nothing", "care.py", "        return not self.findings", "        return True", VECTORS),
    Mutant("repair embeds nothing", "care.py", "        yield from _embed_missing(hook, found, report)\n", "", VECTORS),
    Mutant("a hanging search is waited for", "run.py", "        return call() if step.timeout is None else within(step.timeout, call)", "        return call()", SEARCH),
    Mutant("an async search that hangs is waited for", "run.py", "asyncio.timeout(step.timeout)", "asyncio.timeout(None)", SEARCH),
    Mutant("each widening has a deadline of its own", "flows.py", "scope.namespace, deadline=deadline)", "scope.namespace, deadline=time.monotonic() + (hook.timeout or 1e9))", SEARCH),
    Mutant("threads that a fork did not copy are used", "run.py", "(after_in_child=_idle.clear)", "(after_in_child=_idle.copy)", SEARCH),
    Mutant("two processes share a Chroma folder", "folders.py", "            lock.acquire()\n", "            pass\n", ADAPTERS),
    Mutant("a forked child takes its parent's lock for its own", "folders.py", "lock is not None and lock.is_locked:", "lock is not None:", ADAPTERS),
    Mutant("a store that cannot delete is accepted", "adapters.py", '    ("delete", "adelete"),\n', "", ADAPTERS),
    Mutant("a rebuild takes the old vectors from searches under way", "care.py", "    after = 1 + (yield from LastSeq())", "    after = yield from LastSeq()", REBUILD),
    Mutant("a rebuild shows what it embedded of facts that changed", "care.py", "is not None and now.version == fact.version\n    ]", "is not None\n    ]", REBUILD),
    Mutant("a rebuild touches other collections", "care.py", "for _, fact in same), retire_at, index)", "for _, fact in same), retire_at)", REBUILD),
    Mutant("a rebuild whose lease ended goes on", "care.py", "(yield from Activate(tuple(born))) != len(born)", "(yield from Activate(tuple(born))) < 0", REBUILD),
    Mutant("what is committed while repair looks is taken for lost", "care.py", "    if comparison.missing and held is not None:", "    if False:", REBUILD),
    Mutant("a fact is shown twice", "flows.py", "by_fact.setdefault(fact.id, ", "by_fact.setdefault(vector_id, ", REBUILD),
    # singleton and constraints
    Mutant("no unique index", "backends/schema/sqlite.sql", "CREATE UNIQUE INDEX facts_singleton", "CREATE INDEX facts_singleton", SQLITE),
    Mutant("a singleton is inserted again", "plans.py", "        if holder is not None:\n            return holder\n        if change.id_given", "        if change.id_given", CORE),
    Mutant("the singleton ignores the namespace", "plans.py", "(fact.type, fact.namespace, fact.singleton)", "(fact.type, (), fact.singleton)", CORE),
    Mutant("immutable facts change", "rules.py", "        if self.constraint(fact.type).immutable:", "        if False:", CORE),
    Mutant("expected_version is ignored", "plans.py", "    if version is not None and version != actual:", "    if False:", CORE),
    Mutant("idempotency keys are ignored", "plans.py", "            if done is not None:\n", "            if False:\n", CORE),
    # rollback
    Mutant("rollback clobbers later changes", "plans.py", "        if standing.head != undone.seq:", "        if False:", CORE),
    Mutant("rollback undoes the same step twice", "plans.py", "        self.undone += transactions\n", "", CORE),
    Mutant("rollback ignores the session", "backends/sql.py", '("", ()) if op.session_id is None else', '("", ()) if True else', CORE),
    Mutant("a rollback counts as a step", "plans.py", "        return any(entry.undoes is None for entry in self.entries)", "        return True", CORE),
    Mutant("undone changes stand in the way", "plans.py", "            base=standing.head if undoes is None else undoes.base,", "            base=standing.head,", CORE),
    Mutant("rollback undoes oldest first", "backends/sql.py", "{where} ORDER BY seq DESC LIMIT ?", "{where} ORDER BY seq LIMIT ?", CORE),
    Mutant("versions go back on rollback", "plans.py", "        version = standing.version + 1\n", "        version = standing.version + (1 if undoes is None else 0)\n", CORE),
    Mutant("a rollback is mixed with other changes", "plans.py", "        if self.undone:\n", "        if False:\n", TRANSACTION),
    Mutant("rollback takes a key that another fact holds", "plans.py", "            if holder is not None and holder != before.id:", "            if False:", CORE),
    # transactions
    Mutant("readers in a transaction hold its facts", "flows.py", "fact.model_copy(deep=True)", "fact", TRANSACTION),
    Mutant("a patch can be changed after the call", "memory.py", "        return copy.deepcopy(dict(payload))", "        return dict(payload)", TRANSACTION),
    Mutant("transactions nest", "flows.py", "        if self.ambient.get() is not None:", "        if False:", TRANSACTION),
    Mutant("a transaction mixes sessions", "plans.py", "        if len(self._sessions) > 1:", "        if False:", CORE),
    Mutant("a transaction does not see its writes", "flows.py", "        facts += [fact for fact in overlay.values() if fact is not None and answers(fact, query)]\n", "", CORE),
    Mutant("discarding forgets facts for good", "plans.py", "            yield from self._record(Operation.DISCARD_SESSION, fact.id, None, change.by)\n        return", "            yield from self._record(Operation.DISCARD_SESSION, fact.id, None, change.by)\n            self.undone.append(self.tx)\n        return", CORE),
    # input
    Mutant("NUL is stored", "rules.py", '    if "\\x00" in text:', "    if False:", INPUT),
    Mutant("surrogates reach the driver", "rules.py", "    except UnicodeEncodeError as error:\n        raise", "    except UnicodeEncodeError as error:\n        return\n        raise", INPUT),
    Mutant("NaN is stored", "rules.py", "            if not math.isfinite(value):", "            if False:", INPUT),
    Mutant("depth has no end", "rules.py", "        if depth > MAX_DEPTH:", "        if False:", INPUT),
    Mutant("filter keys are not checked", "rules.py", '        if not isinstance(cast("object", key), str) or not (key in FIELDS or key.startswith("payload.")):', "        if False:", INPUT),
    # storage
    Mutant("no index on what is due", "backends/schema/sqlite.sql", "CREATE INDEX vectors_due ON vectors (due) WHERE due IS NOT NULL;", "", COSTS),
    Mutant("no index on a session's steps", "backends/schema/sqlite.sql", "CREATE INDEX steps_session ON steps (session_id, seq);", "", COSTS),
    Mutant("finding the newest entry reads the history", "backends/sql.py", "(SELECT max(m.version) FROM log m WHERE m.fact_id = wanted.value)", "(SELECT count(*) FROM log m WHERE m.fact_id = wanted.value)", COSTS),
    Mutant("contention is an error", "backends/sqlite.py", "                raise _Contention(str(error)) from error", '                raise StorageError(f"{self.path}: {error}") from error', SQLITE),
    Mutant("a cancelled call goes on", "backends/sqlite.py", "                await asyncio.wait([done])\n                done.exception()\n", "                pass\n", CONCURRENCY),
    Mutant("the log may be changed", "backends/schema/sqlite.sql", "CREATE TRIGGER log_keeps_values BEFORE UPDATE ON log BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;", "", SQLITE),
    Mutant("the log may be deleted", "backends/schema/sqlite.sql", "CREATE TRIGGER log_keeps_rows BEFORE DELETE ON log BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;", "", SQLITE),
    Mutant("writes begin as reads", "backends/sqlite.py", '"BEGIN IMMEDIATE" if work.write else "BEGIN"', '"BEGIN"', SQLITE),
    Mutant("an error commits", "backends/sqlite.py", '                    if connection.in_transaction:\n                        connection.execute("ROLLBACK")\n                    raise\n            finally', '                    if connection.in_transaction:\n                        connection.execute("COMMIT")\n                    raise\n            finally', VECTORS),
    Mutant("no commit", "backends/sqlite.py", '                    connection.execute("COMMIT")\n                except BaseException', '                    connection.execute("ROLLBACK")\n                except BaseException', CORE),
    Mutant("facts are not written", "backends/sql.py", "    rows = [(*_fact_row(entry.after), entry.seq) for entry in final.values() if entry.after is not None]", "    rows: list[Row] = []", CORE),
    Mutant("PostgreSQL gives no space back", "backends/postgres_engine.py", '            yield Exchange(wire, [Sql(f"VACUUM {table}")])\n', "", POSTGRES),
    Mutant("PostgreSQL reads facts without the lock", "backends/postgres_engine.py", "    if isinstance(op, _LOG):", "    if False:", CONCURRENCY),
    Mutant("a thread's ancestors are read without its lock", "backends/postgres_engine.py", "    if isinstance(op, checkpoint_ops.Ancestors):", "    if False:", POSTGRES),
    Mutant("payloads are not validated", "rules.py", "        if schema is not None:\n            try:", "        if False:\n            try:", CORE),
]  # fmt: skip


def caught_by(mutant: Mutant, folder: Path) -> tuple[str | None, float]:
    """The first test that fails because of the mutant, if any does, and how many seconds that took."""
    root = folder / str(abs(hash(mutant.breaks)))
    for name in ("memstate_langgraph", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    mutant.apply(root)
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *mutant.tests.split()]
    try:
        done = subprocess.run(
            command,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            timeout=HANGS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"a test that hangs ({HANGS} s)", time.monotonic() - began
    shutil.rmtree(root)
    if done.returncode not in (0, 1):
        raise SystemExit(f"mutant {mutant.breaks!r}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}")
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.MULTILINE)
    test = None if done.returncode == 0 else failed[1] if failed else "?"
    return test, time.monotonic() - began


def run(mutants: Sequence[Mutant], workers: int = 2) -> list[str]:
    """Try the mutants, print a table; the survivors."""
    table = Table("breakage", "in", "caught by", "seconds", title=f"{len(mutants)} mutants")
    survivors = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        results = pool.map(lambda mutant: caught_by(mutant, Path(folder)), mutants)
        for mutant, (test, seconds) in zip(mutants, track(results, "mutants", len(mutants)), strict=True):
            table.add_row(mutant.breaks, mutant.file, test or "[red]nothing[/red]", f"{seconds:.0f}")
            if test is None:
                survivors.append(mutant.breaks)
    Console().print(table)
    return survivors


if __name__ == "__main__":
    chosen = [mutant for mutant in MUTANTS if all(word in mutant.breaks for word in sys.argv[1:])]
    if survivors := run(chosen):
        raise SystemExit(f"{len(survivors)} survived: {', '.join(survivors)}")
