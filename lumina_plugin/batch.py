"""Attribute every recording of a folder, by several processes, and sum up who is owed what.

What is finished is never done twice: a recording's results lie in a folder whose name holds the hash of its bytes, the
store and the recipe, and `entry.json` is written there last. A run that was killed goes on by the same call, and so
does one with more recordings, or after some were mended.
"""

import dataclasses
import functools
import hashlib
import logging
import multiprocessing
import os
import re
import signal
import threading
import typing as tp
from concurrent import futures
from pathlib import Path

import pydantic
from tqdm import tqdm

from . import audio
from .atomic import writable_folder, write_atomic
from .catalogue.build import find_recordings
from .checkpoints import find_checkpoint
from .errors import LuminaError
from .provenance import report_sha256
from .recipe import recipe_from_dict
from .report.schema import AttributionReport
from .report.summary import By, Entry, LeftOut, Summary, summarise, to_csv, to_shares_csv
from .report.summary_page import render_summary
from .store import FingerprintStore
from .workflows import JSON_NAME, Studio, default_store, write_report

logger = logging.getLogger(__name__)

FILES, ENTRY = 'files', 'entry.json'


@dataclasses.dataclass(frozen=True)
class Job:
    """One recording: `path`, its `name` below the folder, the hash of its bytes, and where its results go."""
    path: Path
    name: str
    sha256: str
    out: Path


@dataclasses.dataclass(frozen=True)
class Batch:
    """What `attribute_folder` did: the summary, how many recordings had been finished before, and the page."""
    summary: Summary
    reused: int
    page: Path


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """What a process needs to attribute: picklable, so that each can load its own."""
    source: str
    store: Path
    device: tp.Optional[str]
    threads: int
    checkpoint: tp.Optional[str]


def attribute_folder(folder: tp.Union[str, Path], out: tp.Union[str, Path], source: tp.Union[str, Path],
                     store: tp.Optional[tp.Union[str, Path]] = None, device: tp.Optional[str] = None, jobs: int = 1,
                     by: By = 'recordings', progress: bool = True, studio: tp.Optional[Studio] = None,
                     checkpoint: tp.Optional[str] = None) -> Batch:
    """Attribute all recordings in and below a folder, and write `summary.html`, `.json` and `.csv` and `shares.csv`.

    A recording that is a generation of this model, with its report beside it, keeps that report: it is of the tokens
    themselves. Files that cannot be attributed are named in the summary with the reason; copies count once.

    Args:
        folder, out (path): Results go into `out/files/NAME-HASH/`, a report in all forms each.
        source, store, device, checkpoint: As in `Studio`. jobs (int): Processes, each with a model of its own.
        by (str): What counts the same in the summary: 'recordings' or 'seconds'.
        studio (Studio, optional): Of `source`, loaded already; used where `jobs` is 1.
    Raises:
        LuminaError: for a folder without recordings, a model or store that cannot be used, or where none of the
            recordings can be attributed.
    """
    folder, out = Path(folder), Path(out)
    if jobs < 1:
        raise LuminaError(f"{jobs} processes cannot attribute anything; use at least 1.")
    if not folder.is_dir():
        raise LuminaError(f"{folder} is no folder; name one with recordings.")
    path = Path(store) if store is not None else default_store(source)
    opened = FingerprintStore.open(path)
    keys = [opened.hash, recipe_from_dict(opened.identity.recipe).hash]
    if checkpoint is not None:
        chosen = find_checkpoint(opened, checkpoint)
        checkpoint = chosen.name
        keys.append(chosen.model_hash)
    found = [one for one in find_recordings(folder) if out.resolve() not in one.resolve().parents]
    if not found:
        raise LuminaError(f"There are no recordings in {folder}; name a folder that holds some.")
    writable_folder(out)
    todo, left_out = _jobs(folder, found, out, keys, progress)
    entries = {job.name: entry for job in todo if (entry := _finished(job)) is not None}
    reused, rest = len(entries), [job for job in todo if job.name not in entries]
    loaded = _Loaded(str(source), path, device, max(1, (os.cpu_count() or 1) // jobs), checkpoint)
    with tqdm(total=len(todo), initial=reused, desc='attributing', unit='file', dynamic_ncols=True,
              disable=not progress) as bar:
        for job, result in _attributed(rest, loaded, min(jobs, max(1, len(rest))), studio):
            bar.update()
            if isinstance(result, LeftOut):
                left_out.append(result)
            else:
                entries[job.name] = result
    ordered = [entries[job.name] for job in todo if job.name in entries]
    if not ordered:
        raise LuminaError(f"None of the {len(found)} recordings in {folder} could be attributed; the first: "
                          f"{left_out[0].file}: {left_out[0].reason}")
    summary = summarise(ordered, sorted(left_out, key=lambda one: one.file), folder.resolve().name, by)
    return Batch(summary, reused, write_summary(summary, out))


def write_summary(summary: Summary, out: Path) -> Path:
    """Write a summary in all its forms; the page, which is written last."""
    summary.save(out / 'summary.json')
    to_csv(summary, out / 'summary.csv')
    to_shares_csv(summary, out / 'shares.csv')
    return Path(render_summary(summary, out / 'summary.html'))


# -- what there is to do ------------------------------------------------------------------------------------------


def _jobs(folder: Path, found: tp.Sequence[Path], out: Path, keys: tp.Sequence[str], progress: bool
          ) -> tp.Tuple[tp.List[Job], tp.List[LeftOut]]:
    """One job per recording that can be opened and is no copy of one before it."""
    todo: tp.Dict[str, Job] = {}
    left_out: tp.List[LeftOut] = []
    homes = {home.name.rsplit('-', 1)[-1]: home for home in (out / FILES).glob('*-*')}  # whatever they were called then
    for path in tqdm(found, desc='looking', unit='file', dynamic_ncols=True, disable=not progress, delay=2):
        name = path.relative_to(folder).as_posix()
        try:
            audio.expect_file(path)
            digest = audio.file_sha256(path)
        except LuminaError as error:
            left_out.append(LeftOut(file=_text(name), reason=_reason(error, path)))
            continue
        if digest in todo:
            left_out.append(LeftOut(file=_text(name), reason=f'a copy of {_text(todo[digest].name)}, which counts'))
            continue
        key = hashlib.sha256('/'.join([digest, *keys]).encode()).hexdigest()[:16]
        stem = re.sub(r'[^\w.-]+', '_', _text(path.stem))[:60].strip('._') or 'recording'
        todo[digest] = Job(path, _text(name), digest, homes.get(key, out / FILES / f'{stem}-{key}'))
    return list(todo.values()), left_out


def _text(name: str) -> str:
    """File names that are not UTF-8 reach Python as lone surrogates, which no JSON file can hold."""
    return name.encode('utf-8', 'replace').decode('utf-8')


def _reason(error: LuminaError, path: Path) -> str:
    """What a message says of a file that is named beside it; where the folder lies is not for the summary's readers."""
    return _text(str(error).replace(f'{path} ', 'it ', 1).replace(f'{path}', path.name))


def _finished(job: Job) -> tp.Optional[Entry]:
    """What is known of a recording that has been attributed before, wherever it lay then."""
    try:
        entry = Entry.model_validate_json((job.out / ENTRY).read_bytes())
    except (OSError, pydantic.ValidationError):
        return None
    return entry.model_copy(update={'file': job.name}) if (job.out / JSON_NAME).is_file() else None


# -- doing it -----------------------------------------------------------------------------------------------------


def _attributed(todo: tp.Sequence[Job], loaded: _Loaded, jobs: int, studio: tp.Optional[Studio]
                ) -> tp.Iterator[tp.Tuple[Job, tp.Union[Entry, LeftOut]]]:
    """Each job's result as soon as it is there."""
    if jobs == 1:
        for job in todo:
            yield job, _attribute(studio or _studio(loaded), job)
        return
    context = multiprocessing.get_context('spawn')
    executor = futures.ProcessPoolExecutor(jobs, context, initializer=_prepare_process)
    try:
        pending = {executor.submit(_attribute_here, loaded, job): job for job in todo}
        for done in futures.as_completed(pending):
            yield pending[done], done.result()
    except futures.process.BrokenProcessPool as error:
        raise LuminaError("A process that attributed recordings has ended without a word, as for want of memory; use "
                          "fewer --jobs. What was finished is kept, and the same command goes on there.") from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _prepare_process() -> None:
    """Let the first process decide: its Ctrl-C ends the work in order, and where it is killed this one goes, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


def _attribute_here(loaded: _Loaded, job: Job) -> tp.Union[Entry, LeftOut]:
    import torch
    torch.set_num_threads(loaded.threads)
    return _attribute(_studio(loaded), job)


@functools.lru_cache(maxsize=1)
def _studio(loaded: _Loaded) -> Studio:
    """Model and store, loaded when the first recording asks for them, once per process."""
    return Studio(loaded.source, loaded.store, device=loaded.device, checkpoint=loaded.checkpoint)


def _attribute(studio: Studio, job: Job) -> tp.Union[Entry, LeftOut]:
    """Attribute a recording and write its reports, or say why it cannot be: one of a thousand does not stop the others.

    What cannot be written, as on a full disk, does.
    """
    try:
        report = _own_report(studio, job) or studio.attribute(job.path)
    except LuminaError as error:
        return LeftOut(file=job.name, reason=_reason(error, job.path))
    except Exception as error:
        logger.exception("%s could not be attributed.", job.path)
        return LeftOut(file=job.name, reason=_text(f'internal error ({type(error).__name__}: {str(error)[:200]})'))
    write_report(job.out, report, None)
    entry = Entry.of(report, job.name, job.sha256, report_sha256(report), f'{FILES}/{job.out.name}')
    write_atomic(job.out / ENTRY, entry.model_dump_json(indent=1) + '\n')
    return entry


def _own_report(studio: Studio, job: Job) -> tp.Optional[AttributionReport]:
    """The report beside a generation of this very model, where it was made with the same store and recipe."""
    beside = job.path.parent / JSON_NAME
    if not beside.is_file():
        return None
    try:
        report = AttributionReport.load(beside)
    except LuminaError:
        return None
    same = (report.query.kind != 'file' and report.query.sha256 == job.sha256 and
            report.store.hash == studio.store.hash and report.recipe.hash == studio.attributor.recipe.hash)
    live, last = studio.attributor.live, studio.store.checkpoints[-1]
    known = report.model.checkpoint
    same = same and (last if known is None else known).model_hash == live.model_hash  # before 1.4 it was the last
    return report if same else None
