"""Everything that can go wrong, often: `python -m tests.torture [--minutes 30] [--scale 1.0] [--seed N]`.

Kills at every point of every operation and at random moments, all other faults, graphs that are killed and resumed,
histories of four processes, mutants. One table at the end; the exit code is 1 if anything is wrong or less was done
than asked.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tests import histories, killed_graph, mutants, soak
from tests.children import warm
from tests.faults import FAULTS
from tests.graphs import DURABILITIES
from tests.matrix import IN_A_FILE, OPERATIONS, Case, Matrix
from tests.servers import postgres_url, redis_url
from tests.stores import POSTGRES, REDIS, chosen

WORKERS = 1 + max(2, os.cpu_count() or 2)
"""One more than cores: some wait for locks and leases."""

IN_MEMORY, ROOM = Path("/dev/shm"), 4 << 30
"""Files are there if it has so many bytes: SIGKILL takes no written page, and Chroma is half as fast on a disk."""

KILLS, OPERATIONS_DONE, HISTORIES = 2_000, 100_000, 200
"""What a run at scale 1 must reach."""

KILLS_ON_SERVERS = 600
"""So many of the kills, at points drawn from all of theirs; the others are at every point of a file."""

GRAPH_KILLS, DIRECT_KILLS, KILLS_AT_ONCE = 300, 30, 6
"""Kills of graphs that write to memory: on this package, with direct writes beside LangGraph's saver, in one job."""

OTHER_FAULTS = 800
"""Trials of faults that do not kill, drawn from all of them."""

SOAK_KILLS, SOAK_SECONDS = 5, 12.0
"""A store lives through so many kills, each after up to so many seconds of work."""


@dataclass
class Tally:
    """What was done and what was found, added up over all jobs."""

    kills: int = 0
    faults: int = 0
    acknowledged: int = 0
    drifts: int = 0
    lost: int = 0
    graph_kills: int = 0
    violations: int = 0
    direct_violations: int = 0
    histories: int = 0
    anomalies: int = 0
    mutants: int = 0
    caught: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


# --- jobs: each runs in one of the workers


MATRICES: dict[str, Matrix] = {}
"""By storage. Made before the workers are forked, so that they all share seeded folders and servers."""


def place_faults(cases: Sequence[tuple[str, Case]]) -> Tally:
    tally = Tally()
    for storage, case in cases:
        problems = MATRICES[storage].trial(case)
        tally.kills += case.fault == "kill"
        tally.faults += case.fault != "kill"
        tally.drifts += bool(problems)
        tally.problems += problems
    return tally


def work_and_die(seed: int) -> Tally:
    place = STORAGES[seed % len(STORAGES)]
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = soak.kill_and_look(Path(folder), SOAK_KILLS, seed, SOAK_SECONDS, place)
        except AssertionError as error:
            lost = "lost" in str(error)
            return Tally(kills=SOAK_KILLS, drifts=not lost, lost=lost, problems=[str(error)])
    return Tally(kills=SOAK_KILLS, acknowledged=done)


def keep_history(seed: int) -> Tally:
    with tempfile.TemporaryDirectory() as folder:
        place = (histories.IN_A_HURRY, POSTGRES, REDIS)[seed % 3]
        history = histories.record(Path(folder), seed, killing=seed % 4 == 0, place=place)
        found = [f"history with seed {seed}: {anomaly}" for anomaly in history.anomalies()]
        return Tally(
            kills=history.killed,
            acknowledged=history.acknowledged,
            histories=1,
            anomalies=len(found),
            lost=sum("lost" in anomaly for anomaly in found),
            problems=found,
        )


STORAGES = chosen(awaited=False, durable=True)

OURS = [
    killed_graph.Setting(durability, place, vectors=vectors, awaited=awaited)
    for vectors, awaited, place, durability in itertools.product((False, True), (False, True), STORAGES, DURABILITIES)
]
THEIRS = [killed_graph.Setting(durability, saver=killed_graph.theirs) for durability in DURABILITIES]


def kill_graphs(ours: bool, number: int, seed: int) -> Tally:
    setting = (OURS if ours else THEIRS)[number]
    with tempfile.TemporaryDirectory() as folder:
        done = killed_graph.kill_often(Path(folder), setting, KILLS_AT_ONCE, seed)
    if not ours:
        return Tally(direct_violations=done.violations)
    return Tally(graph_kills=done.kills, violations=done.violations, problems=done.problems)


def try_mutant(mutant: mutants.Mutant) -> Tally:
    with tempfile.TemporaryDirectory() as folder:
        test, _ = mutants.caught_by(mutant, Path(folder))
    return Tally(mutants=1, caught=test is not None, problems=[] if test else [f"nothing catches {mutant.breaks!r}"])


Job = Callable[[], Tally]


def safely(job: Job) -> Tally:
    logging.disable(logging.WARNING)  # a failing vector store is what happens here all the time
    try:
        return job()
    except BaseException:
        return Tally(problems=[traceback.format_exc()])


# --- which jobs


def all_cases(storage: str, fault: str) -> list[tuple[str, Case]]:
    doors = {"interrupt": ["sync"], "late": ["sync"], "cancel": ["async"], "locked": ["sync"]}
    doors["locked for long"] = ["sync"]
    return [
        (storage, case)
        for operation in OPERATIONS
        for door in doors.get(fault, ["sync", "async"])
        for case in MATRICES[storage].cases(operation, door, fault)
    ]


def batches(cases: Sequence[tuple[str, Case]], size: int = 10) -> Iterator[Job]:
    for start in range(0, len(cases), size):
        yield partial(place_faults, cases[start : start + size])


def graphs(scale: float, seed: int) -> Iterator[Job]:
    """Killed graphs under all circumstances in turn, and some with direct writes, which must go wrong."""
    for settings, kills in ((OURS, GRAPH_KILLS * scale), (THEIRS, DIRECT_KILLS)):  # few could be right by chance
        for i in range(math.ceil(kills / KILLS_AT_ONCE)):
            yield partial(kill_graphs, settings is OURS, i % len(settings), seed * 10_000 + i)


def planned(scale: float, seed: int) -> dict[str, list[Job]]:
    dice = random.Random(seed)
    on_servers = [case for place in (POSTGRES, REDIS) for case in all_cases(place.name, "kill")]
    kills = dice.sample(on_servers, round(KILLS_ON_SERVERS * scale))
    while len(kills) < round(KILLS * scale):  # every point of the file, as often as it goes
        in_a_file = all_cases(IN_A_FILE.name, "kill")
        kills += dice.sample(in_a_file, len(in_a_file))
    kills = kills[: round(KILLS * scale)]
    others = [case for fault in FAULTS if fault != "kill" for storage in MATRICES for case in all_cases(storage, fault)]
    chosen = dice.sample(mutants.MUTANTS, max(1, min(len(mutants.MUTANTS), round(len(mutants.MUTANTS) * scale))))
    return {
        "histories": [partial(keep_history, seed * 10_000 + i) for i in range(max(1, round(HISTORIES * scale)))],
        "kills at every point": list(batches(dice.sample(kills, len(kills)))),
        "killed graphs": list(graphs(scale, seed)),
        "other faults": list(batches(dice.sample(others, min(len(others), round(OTHER_FAULTS * scale))))),
        "mutants": [partial(try_mutant, mutant) for mutant in chosen],
    }


def run(minutes: float, scale: float, seed: int, console: Console) -> Tally:
    deadline = time.monotonic() + minutes * 60
    tally, parts = Tally(), planned(scale, seed)
    wanted = round(OPERATIONS_DONE * scale)
    operations = "operations"

    def jobs() -> Iterator[tuple[str, Job]]:
        for name, its in parts.items():
            for job in its:
                yield name, job
        for each in itertools.count(seed * 10_000):
            if tally.acknowledged >= wanted:
                return
            yield operations, partial(work_and_die, each)

    columns = (TextColumn("{task.description:21}"), BarColumn(), MofNCompleteColumn())
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("fork")) as pool:
        # forked before the progress bar has a thread, whose locks the workers and their children would inherit
        pool.submit(int).result()
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
            bars = {name: progress.add_task(name, total=len(its)) for name, its in parts.items()}
            bars[operations] = progress.add_task(operations, total=wanted)
            for name, found in completed(pool, jobs(), deadline):
                tally.add(found)
                for problem in found.problems:
                    console.print(problem, style="red", markup=False, highlight=False)
                if name != operations:
                    progress.advance(bars[name])
                progress.update(bars[operations], completed=min(tally.acknowledged, wanted))
    return tally


def completed(
    pool: ProcessPoolExecutor, jobs: Iterator[tuple[str, Job]], deadline: float
) -> Iterator[tuple[str, Tally]]:
    """Run jobs, as many at once as there are workers, until there are none or it is late."""
    running: dict[Future[Tally], str] = {}
    while True:
        while len(running) < WORKERS and time.monotonic() < deadline and (job := next(jobs, None)):
            running[pool.submit(safely, job[1])] = job[0]
        if not running:
            return
        for done in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(done), done.result()


# --- the table


def report(tally: Tally, scale: float, seconds: float, seed: int, console: Console) -> bool:
    """Print the table; whether all is well."""
    rows: list[tuple[str, int, str, bool]] = []

    def at_least(label: str, count: int, wanted: int) -> None:
        rows.append((label, count, f"at least {round(wanted * scale):,}", count >= round(wanted * scale)))

    def none(label: str, count: int) -> None:
        rows.append((label, count, "0", count == 0))

    at_least("kills", tally.kills, KILLS)
    at_least("other faults", tally.faults, OTHER_FAULTS)
    at_least("acknowledged operations", tally.acknowledged, OPERATIONS_DONE)
    none("drifts", tally.drifts)
    none("lost acknowledgements", tally.lost)
    at_least("kills of graphs", tally.graph_kills, GRAPH_KILLS)
    none("remembered wrongly", tally.violations)
    rows.append(("the same of direct writes", tally.direct_violations, "some", tally.direct_violations > 0))
    at_least("concurrent histories", tally.histories, HISTORIES)
    none("anomalies", tally.anomalies)
    rows.append(("mutants caught", tally.caught, f"all of {tally.mutants}", tally.caught == tally.mutants > 0))
    table = Table("", "found", "wanted", "", title=f"torture, seed {seed}, {seconds / 60:.1f} minutes")
    table.columns[1].justify = "right"
    for label, count, wanted, well in rows:
        table.add_row(label, f"{count:,}", wanted, "[green]ok[/green]" if well else "[red]WRONG[/red]")
    console.print(table)
    return all(well for *_, well in rows) and not tally.problems


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="begin nothing new after so many (30)")
    parser.add_argument("--scale", type=float, default=1.0, help="do this share of the whole (1.0)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="repeat the run with this seed")
    options = parser.parse_args(arguments)
    console = Console()
    console.print(f"seed {options.seed}: repeat with --seed {options.seed}")
    os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")
    began = time.monotonic()
    if IN_MEMORY.is_dir() and os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free > ROOM:
        tempfile.tempdir = str(IN_MEMORY)
    folder = tempfile.mkdtemp()
    try:
        warm()
        for start in (postgres_url, redis_url):  # here, so that the servers outlive the workers
            start()
        for place in (IN_A_FILE, POSTGRES, REDIS):
            (Path(folder) / place.name).mkdir()
            MATRICES[place.name] = Matrix(Path(folder) / place.name, place)
        tally = run(options.minutes, options.scale, options.seed, console)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    well = report(tally, options.scale, time.monotonic() - began, options.seed, console)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
