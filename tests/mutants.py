"""Deliberate breakages of the promises, each of which some test must catch: `python -m tests.mutants`, or with words
that a mutant's name, file or tests contain.

A checker that never fails proves nothing. Each mutant is one edit of the package in a copy of the project; the
tests named beside it run against the copy and must fail there.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.nursery import Nursery
from tests.servers import postgres_url

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Mutant:
    breaks: str
    file: str
    old: str
    new: str
    tests: str

    def applied(self, root: Path) -> str:
        """The text of its file with the breakage in it; raises `Stale`."""
        text = (root / "memstate_langgraph" / self.file).read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise Stale(f"mutant {self.breaks!r}: {self.old!r} occurs {text.count(self.old)} times in {self.file}")
        return text.replace(self.old, self.new)

    def apply(self, root: Path) -> None:
        broken = self.applied(root)
        (root / "memstate_langgraph" / self.file).write_text(broken, encoding="utf-8")


class Stale(Exception):
    """The package has changed under a mutant: give it the text that now keeps the promise."""


HANGS = 180
"""Seconds after which the tests of a mutant are taken to hang. The longest of them need less than a minute."""

VECTORS, SEARCH, ADAPTERS, REBUILD, INPUT, COSTS, CRASH, CONCURRENCY, SQLITE = (
    f"tests/test_{name}.py"
    for name in ("vectors", "search", "adapters", "rebuild", "bad_input", "costs", "crash", "concurrency", "sqlite")
)
ONCE, LANDING, STRAGGLERS, MODEL, DELTA = (
    f"tests/test_{name}.py" for name in ("exactly_once", "landing", "stragglers", "saver_model", "delta_channels")
)
CALLS, GRAPHS, STORED = (f"tests/saver/test_{name}.py" for name in ("calls", "graphs", "storage"))
CORE, TRANSACTION, PAST = (f"tests/test_contract.py::Test{area}" for area in ("Core", "Transaction", "Past"))
POSTGRES_FAULTS, POSTGRES_COSTS = (f"tests/postgres/test_{name}.py" for name in ("faults", "costs"))
REDIS_FAULTS, REDIS_COSTS, REDIS_WORKERS = (f"tests/redis/test_{name}.py" for name in ("faults", "costs", "workers"))

MUTANTS = [
    # the commit protocol
    Mutant("no intent before the upsert", "flows.py", "            yield intend(tuple(Vector(made.vector_id, hook.name, key[1], due=lease) for key, made in fresh.items()))\n", "", CRASH + "::test_thirty_kills"),
    Mutant("vectors are not made live", "protocol.py", "    if born and (yield from Activate(born)) != len(born):", "    if born and False:", VECTORS + "::test_a_failing_vector_store_leaves_nothing"),
    Mutant("no fence", "protocol.py", "(yield from Activate(born)) != len(born)", "(yield from Activate(born)) < 0", VECTORS + "::test_a_writer_whose_lease_ended_commits_nothing"),
    Mutant("old vectors stay live", "protocol.py", "        yield from Retire(before, retire_at)\n", "        pass\n", VECTORS + "::test_a_failing_vector_store_leaves_nothing"),
    Mutant("failed vectors are not given up", "flows.py", "            yield abandon(tuple(made.vector_id for made in list(prepared.values())), time.time())", "            pass", VECTORS + "::test_a_failing_vector_store_leaves_nothing"),
    Mutant("expired intents are not reaped", "flows.py", "        yield abandon(None, now)\n", "", CRASH + "::test_thirty_kills"),
    Mutant("no tombstone for a late write", "backends/sql.py", "UPDATE vectors SET state = 'retired', due = ?, late = 1 WHERE", "UPDATE vectors SET state = 'retired', due = ?, late = 0 WHERE", CONCURRENCY + "::test_two_who_collect_at_once_keep_the_tombstone"),
    Mutant("a failing upsert is ignored", "flows.py", "                yield from self._give_up(fresh)\n                raise HookError(", "                prepared.update(fresh)\n                continue\n                raise HookError(", VECTORS + "::test_a_failing_vector_store_leaves_nothing"),
    Mutant("texts are not compared again under the lock", "protocol.py", "any(key not in prepared or prepared[key].text != text for", "any(key not in prepared for", CONCURRENCY + "::test_a_replaced_text_is_embedded_again_when_the_race_is_lost"),
    Mutant("a veto is ignored", "flows.py", "                raise HookError(f\"a hook refused the change: {error}\") from error", "                pass", CORE + "::test_a_callable_hook_may_veto"),
    Mutant("a fact without text keeps its old vector", "backends/sql.py", "WHERE fact_id = ? AND state = 'live' AND born < ?", "WHERE fact_id = ? AND state = 'live' AND born < ? AND 0", VECTORS + "::test_a_failing_vector_store_leaves_nothing"),
    Mutant("replaced vectors have no grace time", "flows.py", "prepared, approved, now + self.grace, now, besides\n", "prepared, approved, now, now, besides\n", VECTORS + "::test_a_replaced_vector_stays_for_the_grace_time"),
    Mutant("collection takes live vectors", "backends/sql.py", "due <= ? AND state <> 'live' AND state <> 'intended'", "(due <= ? OR due IS NULL) AND state <> 'intended'", CRASH + "::test_thirty_kills"),
    Mutant("a preview is trusted although the log moved on", "protocol.py", "previewed is not None and (yield from previewed.holds()):", "previewed is not None:", TRANSACTION + "::test_what_was_asked_for_is_what_is_decided_again"),
    Mutant("an id that was made for a fact is taken as new unasked", "plans.py", "        return at == self.at and not any(known)", "        return at == self.at", TRANSACTION + "::test_a_fact_that_was_committed_before_is_changed_under_the_id_that_was_made_for_it"),
    # search
    Mutant("search without a snapshot", "search.py", "hydrate(tuple(vector_id for vector_id, _ in hits), at)", "hydrate(tuple(vector_id for vector_id, _ in hits), 10**15)", VECTORS + "::test_search_sees_one_moment"),
    Mutant("search shows retired vectors", "backends/sql.py", " AND v.born <= ? AND (v.died IS NULL OR v.died > ?)", " AND v.born <= ? AND ? > 0", VECTORS + "::test_a_failed_rollback_changes_nothing"),
    Mutant("search does not widen", "search.py", "            if len(hits) < k or below or", "            if True or below or", VECTORS + "::test_search_widens_until_enough_live_facts_are_found"),
    Mutant("search trusts the store's filter", "search.py", "                    and answers(fact, scope)\n", "", VECTORS + "::test_filters_hold_whatever_the_store_returns"),
    Mutant("no score threshold", "search.py", "                    and (threshold is None or score >= threshold)\n", "", VECTORS + "::test_threshold_and_order"),
    Mutant("a slow search answers from what is gone", "search.py", "        if hook.grace <= 0 or time.monotonic() - began < hook.grace:", "        if True:", CONCURRENCY + "::test_a_search_slower_than_the_grace_time_does_not_answer_wrongly"),
    Mutant("intents never expire", "flows.py", "            lease = time.time() + hook.lease\n", "            lease = time.time() + 10**9\n", CRASH + "::test_thirty_kills"),
    Mutant("a second collector forgets tombstones", "backends/sql.py", "(state = 'tombstone' AND due <= ?)", "(state = 'tombstone' AND ? > 0)", CONCURRENCY + "::test_two_who_collect_at_once_keep_the_tombstone"),
    Mutant("verify finds nothing", "care.py", "        return not self.findings", "        return True", VECTORS + "::test_a_lost_vector_is_found_missing_and_embedded_again"),
    Mutant("repair embeds nothing", "care.py", "        yield from _embed_missing(core, hook, found, report)\n", "", VECTORS + "::test_a_lost_vector_is_found_missing_and_embedded_again"),
    Mutant("a hanging search is waited for", "run.py", "        return call() if step.timeout is None else within(step.timeout, call)", "        return call()", SEARCH + "::test_a_search_that_hangs_ends_at_its_deadline"),
    Mutant("an async search that hangs is waited for", "run.py", "asyncio.timeout(step.timeout)", "asyncio.timeout(None)", SEARCH + "::test_a_search_that_hangs_ends_at_its_deadline"),
    Mutant("each widening has a deadline of its own", "search.py", "scope.namespace, deadline=deadline)", "scope.namespace, deadline=time.monotonic() + (hook.timeout or 1e9))", SEARCH + "::test_widening_shares_one_deadline"),
    Mutant("threads that a fork did not copy are used", "run.py", "(after_in_child=_idle.clear)", "(after_in_child=_idle.copy)", SEARCH + "::test_a_process_ends_although_a_search_hangs_and_searches_after_a_fork"),
    Mutant("two processes share a Chroma folder", "folders.py", "            lock.acquire()\n", "            pass\n", ADAPTERS + "::test_a_second_process_is_told_what_to_do_until_the_first_dies"),
    Mutant("a forked child takes its parent's lock for its own", "folders.py", "lock is not None and lock.is_locked:", "lock is not None:", ADAPTERS + "::test_a_forked_child_is_another_process"),
    Mutant("a store that cannot delete is accepted", "adapters.py", '    ("delete", "adelete"),\n', "", ADAPTERS + "::test_a_store_that_cannot_keep_the_promise_is_refused"),
    Mutant("a rebuild takes the old vectors from searches under way", "care.py", "    after = 1 + (yield from LastSeq())", "    after = yield from LastSeq()", REBUILD + "::test_a_search_during_a_rebuild_sees_every_fact_once"),
    Mutant("a rebuild shows what it embedded of facts that changed", "care.py", "now is not None and now.version == fact.version:", "now is not None:", REBUILD + "::test_what_changes_during_a_rebuild_stays_as_it_was_changed"),
    Mutant("a rebuild touches other collections", "care.py", "for _, entry in born), retire_at, index)", "for _, entry in born), retire_at)", REBUILD + "::test_a_changed_model_is_followed"),
    Mutant("a rebuild whose lease ended goes on", "care.py", "(vector_id, entry.seq) for vector_id, entry in born))) != len(born):\n        raise LeaseLost(\"a collection", "(vector_id, entry.seq) for vector_id, entry in born))) < 0:\n        raise LeaseLost(\"a collection", REBUILD + "::test_a_rebuild_whose_lease_ended_leaves_what_there_was"),
    Mutant("what is committed while repair looks is taken for lost", "care.py", "    if comparison.missing and held is not None:", "    if False:", REBUILD + "::test_what_is_committed_while_the_vector_store_is_looked_through_is_not_missing"),
    Mutant("a fact is shown twice", "search.py", "by_fact.setdefault(fact.id, ", "by_fact.setdefault(vector_id, ", REBUILD + "::test_a_search_during_a_rebuild_sees_every_fact_once"),
    # singleton and constraints
    Mutant("no unique index", "backends/schema/sqlite.sql", "CREATE UNIQUE INDEX facts_singleton", "CREATE INDEX facts_singleton", SQLITE + "::test_the_log_refuses_to_be_changed"),
    Mutant("a singleton is inserted again", "plans.py", "        if holder is not None:\n            return holder\n        if change.id_given", "        if change.id_given", CORE + "::test_a_singleton_is_updated_and_keeps_its_id"),
    Mutant("the singleton ignores the namespace", "plans.py", "(fact.type, fact.namespace, fact.singleton)", "(fact.type, (), fact.singleton)", CORE + "::test_a_singleton_is_updated_and_keeps_its_id"),
    Mutant("immutable facts change", "rules.py", "        if self.constraint(fact.type).immutable:", "        if False:", CORE + "::test_immutable_facts_refuse_every_change"),
    Mutant("expected_version is ignored", "plans.py", "    if version is not None and version != actual:", "    if False:", CORE + "::test_expected_version_is_compare_and_set"),
    Mutant("idempotency keys are ignored", "plans.py", "            if done is not None:\n", "            if False:\n", CORE + "::test_a_used_idempotency_key_writes_nothing"),
    # rollback
    Mutant("rollback clobbers later changes", "plans.py", "        if standing.head != undone.seq:", "        if False:", CORE + "::test_rollback_never_clobbers_a_later_change_of_someone_else"),
    Mutant("rollback undoes the same step twice", "plans.py", "        self.undone += transactions\n", "", CORE + "::test_rollback_counts_transactions_in_force"),
    Mutant("rollback ignores the session", "backends/sql.py", "        conditions.append((\"s.session_id = ?\", op.session_id))\n", "        pass\n", CORE + "::test_rollback_of_one_session_leaves_others"),
    Mutant("a rollback counts as a step", "plans.py", "        return any(entry.counts for entry in self.entries)", "        return True", CORE + "::test_rollback_counts_transactions_in_force"),
    Mutant("undone changes stand in the way", "plans.py", '                "base": standing.head if undoes is None else undoes.base,', '                "base": standing.head,', CORE + "::test_a_transaction_is_one"),
    Mutant("rollback undoes oldest first", "backends/sql.py", "{where}ORDER BY s.seq DESC{limit}", "{where}ORDER BY s.seq{limit}", CORE + "::test_rollback_with_a_key_undoes_once"),
    Mutant("versions go back on rollback", "plans.py", "        version = standing.version + 1\n", "        version = standing.version + (1 if undoes is None else 0)\n", CORE + "::test_immutable_facts_refuse_every_change"),
    Mutant("a rollback is mixed with other changes", "plans.py", "        if self.undone:\n", "        if False:\n", TRANSACTION + "::test_rollback_stands_alone_in_a_transaction"),
    Mutant("rollback takes a key that another fact holds", "plans.py", "            if holder is not None and holder != before.id:", "            if False:", CORE + "::test_rollback_does_not_take_a_key_that_someone_else_holds"),
    # transactions
    Mutant("readers in a transaction hold its facts", "plans.py", "fact and fact.model_copy(deep=True)", "fact", TRANSACTION + "::test_what_is_read_inside_is_a_copy"),
    Mutant("a patch can be changed after the call", "calls.py", "        return copy.deepcopy(dict(payload))", "        return dict(payload)", TRANSACTION + "::test_what_was_asked_for_is_what_is_decided_again"),
    Mutant("transactions nest", "flows.py", "        if self.ambient.get() is not None:", "        if False:", TRANSACTION + "::test_transactions_do_not_nest_and_end_with_their_block"),
    Mutant("a transaction mixes sessions", "plans.py", "        if len(self._sessions) > 1:", "        if False:", CORE + "::test_a_transaction_belongs_to_one_session"),
    Mutant("a transaction does not see its writes", "reading.py", "    facts = [*reversed(changed), *facts] if query.newest else facts + changed\n", "", CORE + "::test_a_transaction_is_one"),
    Mutant("discarding forgets facts for good", "plans.py", "            yield from self._record(Operation.DISCARD_SESSION, fact.id, None, change.by, change.by.session_id)\n        return", "            yield from self._record(Operation.DISCARD_SESSION, fact.id, None, change.by, change.by.session_id)\n            self.undone.append(self.tx)\n        return", CORE + "::test_ephemeral_facts_are_discarded_or_promoted"),
    # input
    Mutant("NUL is stored", "rules.py", '    if "\\x00" in text:', "    if False:", INPUT + "::test_payloads_of_every_shape"),
    Mutant("surrogates reach the driver", "rules.py", "    except UnicodeEncodeError as error:\n        raise", "    except UnicodeEncodeError as error:\n        return\n        raise", INPUT + "::test_payloads_of_every_shape"),
    Mutant("NaN is stored", "rules.py", "        if not math.isfinite(value):", "        if False:", INPUT + "::test_numbers_that_json_lacks"),
    Mutant("depth has no end", "rules.py", "    if depth > MAX_DEPTH:", "    if False:", INPUT + "::test_payloads_too_deep_for_anyone"),
    Mutant("filter keys are not checked", "rules.py", '        if not isinstance(cast("object", key), str) or not (key in FIELDS or key.startswith("payload.")):', "        if False:", INPUT + "::test_filters_of_every_shape"),
    # storage
    Mutant("no index on what is due", "backends/schema/sqlite.sql", "CREATE INDEX vectors_due ON vectors (due) WHERE due IS NOT NULL;", "", COSTS + "::test_cost_does_not_grow"),
    Mutant("no index on a session's steps", "backends/schema/sqlite.sql", "CREATE INDEX steps_session ON steps (session_id, seq);", "", COSTS + "::test_cost_does_not_grow"),
    Mutant("finding a singleton reads its neighbours", "backends/sql.py", "(SELECT f.id FROM facts f WHERE f.type = ?", "(SELECT f.id FROM facts f WHERE f.type || '' = ?", POSTGRES_COSTS + "::test_plans_that_are_kept_look_up"),
    Mutant("finding the newest entry reads the history", "backends/sql.py", "(SELECT max(m.version) FROM log m WHERE m.fact_id = ?)", "(SELECT count(*) FROM log m WHERE m.fact_id = ?)", COSTS + "::test_cost_does_not_grow"),
    Mutant("contention is an error", "backends/sqlite.py", "            return _Contention(str(error))", '            return StorageError(f"{self.path}: {error}")', SQLITE + "::test_a_held_file_is_reported_and_usable_afterwards"),
    Mutant("a cancelled call goes on", "backends/threads.py", "            await asyncio.wait([done])\n            done.exception()\n", "            pass\n", CONCURRENCY + "::test_a_cancelled_call_has_ended_when_it_returns"),
    Mutant("the log may be changed", "backends/schema/sqlite.sql", "        NEW.purged AND NEW.after IS NULL", "        1 OR NEW.purged AND NEW.after IS NULL", SQLITE + "::test_the_log_refuses_to_be_changed"),
    Mutant("the log may be deleted", "backends/schema/sqlite.sql", "CREATE TRIGGER log_keeps_rows BEFORE DELETE ON log BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;", "", SQLITE + "::test_the_log_refuses_to_be_changed"),
    Mutant("writes begin as reads", "backends/sqlite_transaction.py", '"BEGIN IMMEDIATE" if self._work.write else "BEGIN"', '"BEGIN"', SQLITE + "::test_a_write_plan_holds_the_file_from_its_first_question"),
    Mutant("an error commits", "backends/sqlite_transaction.py", '                if self._connection.in_transaction:\n                    self._connection.execute("ROLLBACK")\n                raise\n        return result', '                if self._connection.in_transaction:\n                    self._connection.execute("COMMIT")\n                raise\n        return result', VECTORS + "::test_a_writer_whose_lease_ended_commits_nothing"),
    Mutant("no commit", "backends/sqlite_transaction.py", '                    self._connection.execute("COMMIT")\n            except BaseException', '                    self._connection.execute("ROLLBACK")\n            except BaseException', CORE + "::test_a_fact_comes_back_as_it_was_committed"),
    Mutant("facts are not written", "backends/sql.py", "        for entry in final.values()\n        if (fact := entry.after) is not None", "        for entry in ()\n        if (fact := entry.after) is not None", CORE + "::test_a_fact_comes_back_as_it_was_committed"),
    Mutant("PostgreSQL gives no space back", "backends/postgres_engine.py", '            yield Exchange(wire, [Sql(f"VACUUM {table}")])\n', "", POSTGRES_COSTS + "::test_space_is_given_back_on_request"),
    Mutant("servers read facts without the lock", "backends/scopes.py", "    if isinstance(op, _LOG):", "    if False:", CONCURRENCY + "::test_eight_threads_on_one_store"),
    Mutant("a thread's ancestors are read without its lock", "backends/scopes.py", "    if isinstance(op, checkpoint_ops.Ancestors | checkpoint_ops.WroteTo):", "    if False:", POSTGRES_FAULTS + "::test_what_a_writing_plan_relies_on_is_locked_first"),
    Mutant("acknowledged before it is on disk", "backends/postgres_engine.py", "*([FLUSH] if flushes else [])", "*([] if flushes else [])", POSTGRES_FAULTS + "::test_whoever_waits_for_the_disk_is_in_nobodys_way"),
    Mutant("an error after COMMIT repeats it", "backends/postgres_engine.py", "(flushes and wire.info.transaction_status == IDLE)", "False", POSTGRES_FAULTS + "::test_an_error_after_the_commit_repeats_nothing"),
    Mutant("a position is asked for beside what moves it", "backends/postgres_engine.py", "        if not written.isdisjoint(tables):\n", "        if False:\n", POSTGRES_COSTS + "::test_rows_of_several_tables_are_one_statement"),
    Mutant("a newer checkpoint of another is missed", "backends/sql_checkpoints.py", "checkpoint_id > c.checkpoint_id) ", "checkpoint_id < '') ", STORED + "::test_what_another_did_to_the_last_checkpoint_is_seen"),
    Mutant("another's pending writes are missed", "backends/sql_checkpoints.py", "AND checkpoint_id = c.checkpoint_id)", "AND checkpoint_id = '')", STORED + "::test_what_another_did_to_the_last_checkpoint_is_seen"),
    Mutant("another's metadata are missed", "backends/sql_checkpoints.py", "AND metadata_kind = ? AND metadata = ? ", "AND metadata_kind = ? AND metadata IS NOT ? || 'x' ", STORED + "::test_what_another_did_to_the_last_checkpoint_is_seen"),
    Mutant("another's value is missed", "backends/sql_checkpoints.py", "AND kind = ? AND pieces = ?)\" * values", "AND kind = ? AND pieces IS NOT ? || 'x')\" * values", STORED + "::test_what_another_did_to_the_last_checkpoint_is_seen"),
    Mutant("another's value in an empty channel is missed", "backends/sql_checkpoints.py", "AND NOT {value})", "AND NOT {value} AND 1 = 0)", STORED + "::test_what_another_did_to_the_last_checkpoint_is_seen"),
    Mutant("a pool waits for its own thread to end", "backends/postgres.py", "suppress(RuntimeError)", "suppress(KeyError)", "tests/test_connections.py::test_a_forgotten_pool_may_end_in_a_thread_of_its_own"),
    Mutant("the log is locked until it is on disk", "backends/postgres_engine.py", "work.durable and self._may_flush", "False", POSTGRES_FAULTS + "::test_whoever_waits_for_the_disk_is_in_nobodys_way"),
    Mutant("several rows without a transaction", "backends/sqlite_transaction.py", "        if statement is None:\n            self._begin_asking()", "        if statement is None:\n            for batch in batches:\n                self._connection.executemany(batch.text, batch.rows)", SQLITE + "::test_what_asks_nothing_is_one_transaction_too"),
    Mutant("what a failed pipeline prepared is taken for prepared", "backends/postgres_engine.py", "        if state == \"26000\":", "        if False:", POSTGRES_FAULTS + "::test_what_the_driver_takes_for_prepared_is_prepared_again"),
    Mutant("Redis commits whatever has moved", "backends/lua/commit.lua", "for n = 1, checks do\n    if (redis", "for n = 1, 0 do\n    if (redis", REDIS_FAULTS + "::test_a_server_killed_and_started_under_writers"),
    Mutant("Redis stores a checkpoint past a result", "backends/redis_engine.py", "                yield from self._asking(transaction, scopes, [])\n", "                pass\n", REDIS_WORKERS + "::test_a_checkpoint_is_stored_by_who_sees_what_came_before_it"),
    Mutant("Redis keeps the keys of what is purged", "backends/redis_facts.py", "            view.drop(view.key(\"log:keys\"), columns[10])", "            pass", REDIS_COSTS + "::test_what_is_purged_is_in_no_key"),
    Mutant("Redis lets purged vectors wait", "backends/redis_facts.py", "                _become(view, vector, replace(vector, due=op.now))", "                pass", REDIS_COSTS + "::test_what_is_purged_is_in_no_key"),
    Mutant("Redis keeps the ends of what is gone", "backends/redis_facts.py", "[*_fact_indexes(view, fact), view.key(\"facts:ends\")]", "_fact_indexes(view, fact)", REDIS_COSTS + "::test_what_has_ended_is_found_without_the_rest"),
    Mutant("payloads are not validated", "rules.py", "        if schema is not None:\n            try:", "        if False:\n            try:", CORE + "::test_a_fact_comes_back_as_it_was_committed"),
    # what a task wrote
    Mutant("a task's writes are seen before its result", "flows.py", "        stage = None if immediate else (yield from self._stage())\n", "        stage = None\n        yield from ()\n", ONCE + "::test_a_task_and_what_follows_see_its_writes_and_nobody_else"),
    Mutant("immediate is ignored", "flows.py", "        stage = None if immediate else (yield from self._stage())\n", "        stage = yield from self._stage()\n", ONCE + "::test_immediate_writes_do_not_wait"),
    Mutant("writes are staged under any checkpointer", "flows.py", "        return task if task is not None and getattr(task.checkpointer, \"identity\", None) == self.identity else None", "        return task", ONCE + "::test_with_another_checkpointer_writes_are_as_outside_a_graph"),
    Mutant("what landed lands again", "flows.py", "        if stage.tried:  # ", "        if False:  # ", LANDING + "::test_a_result_and_the_next_checkpoint_land_it_once"),
    Mutant("what landed stays on its stage", "flows.py", "        STAGES.close(self.identity, stage)\n        yield from self._tidy()", "        yield from self._tidy()", ONCE + "::test_a_task_and_what_follows_see_its_writes_and_nobody_else"),
    Mutant("a failed task keeps what it wrote", "saver.py", "if landing.failed(channels) else work", "if False else work", ONCE + "::test_a_failed_task_leaves_nothing_and_its_next_run_begins_afresh"),
    Mutant("an interrupted task keeps what it wrote", "landing.py", "_ENDS_ATTEMPT = frozenset({ERROR, INTERRUPT})", "_ENDS_ATTEMPT = frozenset({ERROR})", ONCE + "::test_an_interrupted_task_writes_when_it_is_resumed"),
    Mutant("an attempt goes on from the one that failed", "staging.py", "stage.task.run is task.run and stage.task.attempt == task.attempt:\n                    return", "stage.task.run is task.run:\n                    return", ONCE + "::test_of_several_attempts_only_the_last_counts"),
    Mutant("an attempt sees the one that failed", "staging.py", "self.task.run is not task.run or (self.task.levels == task.levels and self.task.attempt != task.attempt)", "self.task.run is not task.run", ONCE + "::test_of_several_attempts_only_the_last_counts"),
    Mutant("a failed attempt leaves its vectors", "flows.py", "            yield from self.give_up(old)\n", "            yield from ()\n", ONCE + "::test_the_same_through_the_async_door"),
    Mutant("a dropped stage leaves its vectors", "flows.py", "        STAGES.close(self.identity, stage)\n        yield from self._give_up(stage.prepared)", "        STAGES.close(self.identity, stage)\n        yield from ()", ONCE + "::test_a_failed_task_leaves_nothing_and_its_next_run_begins_afresh"),
    Mutant("a run sees what a broken-off one left", "staging.py", "self.task.run is not task.run or (self", "(self", ONCE + "::test_what_a_broken_off_run_left_is_never_seen_nor_stored"),
    Mutant("neighbours see each other", "staging.py", "                return False  # a neighbour in the same step", "                return True", LANDING + "::test_neighbours_land_side_by_side_and_do_not_see_each_other"),
    Mutant("a later step does not see an earlier one", "staging.py", "                return ours.checkpoint_id < theirs.checkpoint_id", "                return False", ONCE + "::test_a_task_and_what_follows_see_its_writes_and_nobody_else"),
    Mutant("a result with an error beside it is none", "landing.py", "    return not WRITES_IDX_MAP.keys() >= set(channels)", "    return not {ERROR, INTERRUPT} & {*channels} and not WRITES_IDX_MAP.keys() >= set(channels)", LANDING + "::test_a_result_with_an_error_beside_it_lands"),
    Mutant("a run stores what concerns another", "landing.py", "    return run is None or stage.task.run is run", "    return True", LANDING + "::test_what_a_cancelled_run_still_stores_concerns_only_its_own"),
    Mutant("what waits is looked for before its turn", "landing.py", "        result = yield from start()\n", "        early = concerned(identity, event)\n        result = yield from start()\n        yield from land([stage for stage in early if stage not in landed])\n        return result\n", LANDING + "::test_a_result_is_seen_by_a_checkpoint_that_began_before_it"),
    Mutant("a refused landing stays on its stage", "landing.py", "                yield from missing.stage.owner.prepare_again(missing.stage)\n", "                landing.clear()\n                yield from missing.stage.owner.prepare_again(missing.stage)\n", LANDING + "::test_a_veto_has_its_say_about_what_lands"),
    Mutant("a result lands before its checkpoint", "landing.py", "        if (yield from _stored(stage.places()[: 1 if stage.task.exits else at + 1])):", "        if True:\n            yield from ()", LANDING + "::test_a_result_waits_for_the_checkpoint_that_it_rests_on"),
    Mutant("only the innermost checkpoint counts", "landing.py", "        if (yield from _stored(stage.places()[: 1 if stage.task.exits else at + 1])):", "        if (yield from _stored(stage.places()[at : at + 1])):", LANDING + "::test_a_result_waits_for_the_checkpoints_of_the_graphs_around_it"),
    Mutant("what waits for its checkpoint is forgotten", "landing.py", "        stage.prove(at, Proof(self.place, self.task_id))\n", "", LANDING + "::test_a_result_waits_for_the_checkpoint_that_it_rests_on"),
    Mutant("a result that is being stored hides one that is", "staging.py", "            self.proofs.append((level, proof))", "            self.proofs[:] = [(level, proof)]", LANDING + "::test_a_result_that_is_being_stored_does_not_hide_one_that_is"),
    Mutant("what waited lands without its result", "landing.py", "(yield from _stored(places)) and (yield from _holds(proof))", "(yield from _stored(places))", LANDING + "::test_a_result_that_could_not_be_stored_lands_nothing"),
    Mutant("a checkpoint comes before what it is made of", "landing.py", "            yield from land([stage for stage in stages if event.contains(stage)])\n", "            pass\n", ONCE + "::test_a_task_and_what_follows_see_its_writes_and_nobody_else"),
    Mutant("what a task did precedes the checkpoint that it ran on", "landing.py", "return self._level(stage) is not None and self.place not in stage.places()", "return self._level(stage) is not None", ONCE + "::test_a_subgraph_that_fails_keeps_the_steps_that_it_finished"),
    Mutant("a run that ends in a failure lands the failed step", "landing.py", "        if stage.closed or (rests_on == self.place.checkpoint_id and not stage.proofs):", "        if False:", ONCE + "::test_a_failed_task_leaves_nothing_and_its_next_run_begins_afresh"),
    Mutant("a checkpoint lands what another run left", "landing.py", "stage.task.levels if stage.task.run is run_of(self.configurable) else ()", "stage.task.levels", ONCE + "::test_what_a_broken_off_run_left_is_never_seen_nor_stored"),
    Mutant("a slow task is robbed", "flows.py", "            stage.prepared.clear()\n            raise Unprepared(stage) from None", "            raise", ONCE + "::test_a_slow_task_outlives_its_lease"),
    Mutant("what cannot land stays", "landing.py", "        for stage in landing:  # ", "        for stage in ():  # ", ONCE + "::test_a_conflict_is_an_error_of_the_run_with_nothing_half_done"),
    Mutant("two threads of a task overwrite each other", "staging.py", "            if len(self.units) != known:", "            if False:", LANDING + "::test_two_threads_of_a_task_see_each_other"),
    Mutant("a straggler is let in", "staging.py", "            if not self._is_latest(storage, task):", "            self._is_latest(storage, task)\n            if False:", STRAGGLERS + "::test_it_comes_when_the_next_attempt_has_written"),
    Mutant("a straggler of an earlier run is let in", "graph.py", "getattr(info, \"node_first_attempt_time\", None) or 0.0", "0.0", STRAGGLERS + "::test_it_comes_in_the_next_run"),
    Mutant("what a straggler prepared stays", "flows.py", "                if stage.over:  # ", "                if False:  # ", STRAGGLERS + "::test_the_vectors_that_it_was_preparing_are_removed"),
    Mutant("an attempt lands with the next one that only reads", "landing.py", "if stage.over == over and event.concerns(stage)]", "if (not over) and event.concerns(stage)]", STRAGGLERS + "::test_the_next_attempt_only_reads"),
    Mutant("what landed meanwhile is prepared again", "protocol.py", "        if (yield from is_landed(unit)):\n            return None\n", "", LANDING + "::test_two_who_prepare_it_again_land_it_once"),
    Mutant("it lands as it was first decided", "flows.py", "            if i == 0 and not unit.draft.rests_on_others and (yield from unit.draft.holds()):", "            if i == 0:", ONCE + "::test_a_task_and_what_follows_see_its_writes_and_nobody_else"),
    Mutant("it lands with the texts of before", "flows.py", "        if lacking(texts, stage.prepared):\n            raise Unprepared(stage)\n", "", LANDING + "::test_what_another_changed_meanwhile_is_embedded_as_it_lands"),
    Mutant("it lands without the veto's consent", "flows.py", "            if unit.approved is not None and unit.approved != gist(draft):", "            if False:", LANDING + "::test_a_veto_has_its_say_about_what_lands"),
    Mutant("a task's search does not find what it wrote", "search.py", "if fact.id not in ours} | prepared", "if fact.id not in ours}", ONCE + "::test_a_task_and_what_follows_see_its_writes_and_nobody_else"),
    Mutant("a rollback in a task sees only what is stored", "flows.py", "        if units and any(isinstance", "        if False and any(isinstance", ONCE + "::test_rollback_inside_a_task_undoes_what_the_task_wrote"),
    Mutant("a caller's failure takes its @task's result", "landing.py", "            called = level is not own and level.checkpoint_id == own.checkpoint_id", "            called = False", ONCE + "::test_a_result_that_is_stored_after_its_caller_failed_lands"),
    # undoing by cause
    Mutant("revert takes what has other causes", "backends/sql.py", "= [(f\"l.{name} = ?\", value) for name, value in op.causes]", "= []", PAST + "::test_what_a_run_did_is_undone_and_nothing_else"),
    Mutant("revert takes what came before", "backends/sql.py", "        conditions.append((\"s.seq > ?\", op.after))\n", "        pass\n", PAST + "::test_only_what_came_since_is_undone"),
    Mutant("a rewind undoes what came before its checkpoint", "backends/sql.py", "        conditions.append((\"l.checkpoint_id >= ?\", op.ran_on))\n", "        pass\n", PAST + "::test_a_thread_and_its_memories_are_rewound_together"),
    Mutant("a rewind is two transactions", "flows.py", "        draft, _ = yield from self.write([rollback], besides)\n", "        draft, _ = yield from self.write([rollback])\n        yield writes(besides)()\n", PAST + "::test_a_thread_and_its_memories_are_rewound_together"),
    # checkpoints
    Mutant("chunks are not verified", "chunks.py", "            if row.cipher is None and hashlib", "            if False and hashlib", STORED + "::test_damage_is_an_error_never_a_wrong_state"),
    Mutant("a missing chunk is taken for nothing", "chunks.py", "            raise Damaged(f\"chunk {piece.chunk.hex()} is missing\")", "            continue", STORED + "::test_damage_is_an_error_never_a_wrong_state"),
    Mutant("the end of a piece is taken from its start", "chunks.py", "piece._replace(start=piece.start + piece.size - tail, size=tail)", "piece._replace(size=tail)", "tests/test_chunks.py::test_pieces_are_the_value"),
    Mutant("small pieces pile up", "chunks.py", "    if len(pieces) < RUN:", "    if True:", STORED + "::test_a_turn_costs_what_is_new_in_it"),
    Mutant("encrypted chunks are named by content", "chunks.py", "        if self._cipher is not None:\n            return lambda _", "        if False:\n            return lambda _", STORED + "::test_encryption_hides_values_and_still_shares_them"),
    Mutant("a reader trusts its memory of a channel", "checkpoints.py", "known is not None and known.row == row:", "known is not None:", CALLS + "::test_a_value_stays_as_its_version_said"),
    Mutant("what a list of pieces keeps is not verified", "chunks.py", "    if checksum is not None and checksum", "    if False and checksum", STORED + "::test_damage_is_an_error_never_a_wrong_state"),
    Mutant("of equal pieces in a list one is kept", "chunks.py", "pieces.index(piece, at + 1)", "pieces.index(piece, max(at, 0))", "tests/test_chunks.py::test_pieces_are_stored_and_read_also_when_some_are_the_same"),
    Mutant("what waited in a list of pieces is lost", "chunks.py", "        start -= same.pop().size", "        same.pop()", "tests/test_chunks.py::test_pieces_are_the_value"),
    Mutant("a copied thread leaves its chunks behind", "checkpoints.py", "    if pool is not None:\n        yield from JoinPool(target, pool)\n", "", STORED + "::test_a_copy_outlives_its_source"),
    Mutant("on PostgreSQL a checkpoint takes its turn when it commits", "backends/postgres_engine.py", "            if isinstance(op, checkpoint_ops.SaveCheckpoint) and transaction.locking:", "            if False:", "tests/postgres/test_faults.py::test_a_checkpoint_takes_its_turn_when_it_is_saved"),
    Mutant("a writer trusts its memory of a channel", "checkpoints.py", "        if not (yield Holds(", "        if False and not (yield Holds(", STORED + "::test_a_thread_that_another_began_anew_goes_on"),
    Mutant("what was taken for granted is not checked", "backends/sqlite_at_once.py", "WHERE NOT EXISTS ({text}); ", "WHERE FALSE AND NOT EXISTS ({text}); ", SQLITE + "::test_a_step_of_a_graph_is_one_statement"),
    Mutant("what was taken for granted is not checked before a question", "backends/sqlite_transaction.py", "            if self._answer(guess) != guess.likely:", "            if False:", STORED + "::test_a_thread_that_another_began_anew_goes_on"),
    Mutant("a plan that begins again reads what it has read", "bodies.py", "        key = row.place, row.body  # ", "        key = row.place, b\"\"  # ", STORED + "::test_a_plan_that_begins_again_reads_what_is_there_by_then"),
    Mutant("a known checkpoint is taken for the last", "checkpoints.py", "    is_known = row.place == head.row.place and lens.versions(row) == versions\n", "    is_known = True\n", SQLITE + "::test_going_on_with_a_thread_is_one_question"),
    Mutant("an answer is of two moments", "backends/sqlite_transaction.py", "        if self._asked:\n            raise WrongGuess\n", "", SQLITE + "::test_what_is_asked_without_a_transaction_is_of_one_moment"),
    Mutant("going on with a thread is many questions", "backends/sqlite_at_once.py", "    if not text or len(asked) < len(questions):", "    if True:", SQLITE + "::test_going_on_with_a_thread_is_one_question"),
    Mutant("the values of a thread are all looked through", "backends/sql_checkpoints.py", 'select = " UNION ALL ".join([f"{select} AND channel = ? AND version = ?"] * len(op.keys))', 'select += " AND (" + " OR ".join(["+channel = ? AND version = ?"] * len(op.keys)) + ")"; parameters = parameters + [part for key in op.keys for part in key]; return [ops.ValueRow(ops.ValueKey(row[0], row[1]), row[2], row[3]) for row in (yield Sql(select, parameters))]', COSTS + "::test_going_on_with_a_thread_does_not_cost_its_history"),
    Mutant("a step is many statements", "backends/sqlite_at_once.py", "    if statement is None:", "    if True:", SQLITE + "::test_a_step_of_a_graph_is_one_statement"),
    Mutant("a deleted thread takes the chunks of its copy", "checkpoints.py", "    yield from DropThread(thread_id)\n    if pool is not None:\n        yield from _collect(pool)", "    yield from DropThread(thread_id)\n    if pool is not None:\n        yield from DropChunks(pool, tuple((yield from PoolChunks(pool))))", STORED + "::test_a_copy_outlives_its_source"),
    Mutant("a deleted thread leaves its chunks", "checkpoints.py", "    yield from DropThread(thread_id)\n    if pool is not None:\n        yield from _collect(pool)", "    yield from DropThread(thread_id)", STORED + "::test_pruning_gives_back_what_nothing_needs"),
    Mutant("collection takes the chunks of pending writes", "backends/sql_checkpoints.py", "    for table in (\"channel_values\", \"writes\"):\n        rows", "    for table in (\"channel_values\",):\n        rows", STORED + "::test_a_copy_outlives_its_source"),
    Mutant("a copy has a pool of its own", "checkpoints.py", "    yield from JoinPool(target, pool)", "    yield from JoinPool(target, new_pool())", GRAPHS + "::test_a_graph_with_everything_behaves_as_in_memory"),
    Mutant("a copy lacks the pending writes", "backends/sql_checkpoints.py", "((\"checkpoints\", _CHECKPOINT), (\"writes\", _WRITE), (", "((\"checkpoints\", _CHECKPOINT), (", STORED + "::test_a_copy_outlives_its_source"),
    Mutant("a put stores channels that are not new", "saver.py", "        for channel, version in new_versions.items():", "        for channel, version in {**body[\"channel_versions\"], **new_versions}.items():", CALLS + "::test_a_value_stays_as_its_version_said"),
    Mutant("pending writes come as they arrived", "checkpoints.py", "    return sorted(found, key=lambda write: (write.task_path, write.task_id, write.idx))", "    return list(found)", CALLS + "::test_writes_come_in_the_order_of_their_tasks_paths"),
    Mutant("ordinary writes keep the last", "backends/sql_checkpoints.py", "SAVE_FIRST_WRITE = _insert_new(\"writes\", _WRITE)", "SAVE_FIRST_WRITE = _upsert(\"writes\", _WRITE, _WRITE_KEY)", CALLS + "::test_ordinary_writes_keep_the_first_and_special_ones_the_last"),
    Mutant("special writes keep the first", "backends/sql_checkpoints.py", "SAVE_LAST_WRITE = _upsert(\"writes\", _WRITE, _WRITE_KEY)", "SAVE_LAST_WRITE = _insert_new(\"writes\", _WRITE)", CALLS + "::test_ordinary_writes_keep_the_first_and_special_ones_the_last"),
    Mutant("the latest is the one that came last", "backends/sql_checkpoints.py", "    order = [\"checkpoint_id DESC\"]", "    order = [\"rowid DESC\"]", CALLS + "::test_an_asked_checkpoint_comes_back_under_its_id"),
    Mutant("before is ignored", "backends/sql_checkpoints.py", "            \"checkpoint_id < ?\": op.before,\n", "", STORED + "::test_a_list_of_many_checkpoints_comes_in_pages"),
    Mutant("pruning breaks delta channels", "checkpoints.py", "            while wanted and current is not None", "            while False and current is not None", DELTA + "::test_pruning_leaves_what_a_delta_channel_is_made_of"),
    Mutant("pruning leaves values behind", "checkpoints.py", "tuple(v.key for v in stored if v.key not in keys)", "()", STORED + "::test_pruning_gives_back_what_nothing_needs"),
    Mutant("pruning takes values that are needed", "checkpoints.py", "        used[row.place.checkpoint_ns].update(", "        used[row.place.checkpoint_id].update(", STORED + "::test_pruning_gives_back_what_nothing_needs"),
    Mutant("readers share messages", "pristine.py", "            fields[name] = fields[name].copy()  # most containers of a message are empty\n        for name in self.filled:\n            fields[name] = thawed(fields[name])\n", "            pass\n", MODEL + "::test_a_saver_reads_as_in_memory"),
    Mutant("the garbage collector stays off", "pristine.py", "        if self._was_on:\n", "        if False:\n", STORED + "::test_reading_leaves_the_garbage_collector_as_it_was"),
    Mutant("the first reader's messages are kept", "pristine.py", "        self._keep(spot, _Kept(serde, body, value, count))\n        return thawer.decode_for_reader(data)", "        value = thawer.decode_for_reader(data)\n        self._keep(spot, _Kept(serde, body, value, count))\n        return value", STORED + "::test_what_a_reader_changes_no_other_sees"),
    Mutant("an edited message is stored as it was", "pristine.py", "packed.startswith(kept.packed) and _are_like(", "_are_like(", GRAPHS + "::test_messages_come_back_as_messages_also_when_edited_and_removed"),
    Mutant("what is not a field of a message is stored as it was", "pristine.py", " and _are_like(messages[: kept.count], before):", ":", CALLS + "::test_what_is_not_a_field_of_a_message_is_stored_when_it_changes"),
    Mutant("what is in a message is not looked at", "pristine.py", "        deep = tuple([(name, _shape(fields[name])) for name in filled]) if filled else ()\n", "        deep = ()\n", CALLS + "::test_what_is_in_a_message_is_decoded_as_the_serializer_does"),
    Mutant("what a part of a message says of its type is not looked at", "pristine.py", "item if key == \"type\" and type(item) is str else ", "", CALLS + "::test_what_is_in_a_message_is_decoded_as_the_serializer_does"),
    Mutant("what a text in a message says is not looked at", "pristine.py", "            by_hand = False  # AIMessage", "            pass  # AIMessage", CALLS + "::test_what_is_in_a_message_is_decoded_as_the_serializer_does"),
    Mutant("a message is taken to come back as it was", "pristine.py", "                as_it_was = made.kind is", "                as_it_was = True or made.kind is", CALLS + "::test_a_message_that_decoding_changes_is_the_same_to_every_reader"),
    Mutant("what began to wait meanwhile is overlooked", "landing.py", "    if STAGES.by_thread and (concerned(identity, event) or", "    if False and (concerned(identity, event) or", LANDING + "::test_a_result_is_seen_by_a_checkpoint_that_began_before_it"),
]  # fmt: skip


def caught_by(mutant: Mutant, folder: Path) -> tuple[str | None, float]:
    """The first test that fails because of the mutant, if any does, and how many seconds that took."""
    root = folder / str(abs(hash(mutant.breaks)))
    for name in ("memstate_langgraph", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    mutant.apply(root)
    began = time.monotonic()
    options = ["-x", "-p", "no:cacheprovider", "--hypothesis-profile", "unshrunk"]
    code, printed = _nursery().run(root, [*options, *mutant.tests.split()], HANGS)
    shutil.rmtree(root, ignore_errors=True)
    if code is None:
        return f"a test that hangs ({HANGS} s)", time.monotonic() - began
    if code not in (0, 1):
        raise SystemExit(f"mutant {mutant.breaks!r}: pytest ended with {code}\n{printed[-2000:]}")
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", printed, re.MULTILINE)
    test = None if code == 0 else failed[1] if failed else "?"
    return test, time.monotonic() - began


_mine = threading.local()


def _nursery() -> Nursery:
    """Of this thread of this process, which may be a fork of one that had another."""
    if getattr(_mine, "pid", None) != os.getpid():
        _mine.pid, _mine.nursery = os.getpid(), Nursery({"MEMSTATE_POSTGRES_URL": postgres_url()})
    found: Nursery = _mine.nursery
    return found


def run(mutants: Sequence[Mutant], workers: int = 2) -> list[str]:
    """Try the mutants, print a table; the survivors."""
    table = Table("breakage", "in", "caught by", "seconds", title=f"{len(mutants)} mutants")
    survivors = []
    postgres_url()  # a server for all, before two threads start it at once
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        results = pool.map(lambda mutant: caught_by(mutant, Path(folder)), mutants)
        for mutant, (test, seconds) in zip(mutants, track(results, "mutants", len(mutants)), strict=True):
            table.add_row(mutant.breaks, mutant.file, test or "[red]nothing[/red]", f"{seconds:.0f}")
            if test is None:
                survivors.append(mutant.breaks)
    Console().print(table)
    return survivors


if __name__ == "__main__":
    chosen = [
        mutant
        for mutant in MUTANTS
        if all(word in f"{mutant.breaks} {mutant.file} {mutant.tests}" for word in sys.argv[1:])
    ]
    if survivors := run(chosen):
        raise SystemExit(f"{len(survivors)} survived: {', '.join(survivors)}")
