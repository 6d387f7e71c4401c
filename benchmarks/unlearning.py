"""What does unlearning cost, exact, on a shortlist, for many queries, and at the real size? Prints Markdown.

    python benchmarks/unlearning.py [RUN] [--only one --only batches] [--songs 1000] [--queries 16]
    python benchmarks/unlearning_docs.py                 # puts it into docs/unlearning.md

RUN is a run of the quickstart (its folder or signature; the finished one below outputs/ unless said). For the shortlist
a model of the same size is trained on `--songs` excerpts; that, the songs and every number go below `--out` and are
found again, so that it can be stopped at any time. Two cores are measured where this process may use two.
"""

import os
import statistics
import typing as tp
from pathlib import Path

import torch
import typer

from lumina_plugin import compat

compat.install()

from unlearning_cost import cost  # noqa: E402  (after the shims; these lie beside)
from unlearning_fast import TOP, measured, measured_sketched, open_bench, overlap, recalls, ways  # noqa: E402
from unlearning_songs import many_songs_run  # noqa: E402
from unlearning_timing import Facts, Watch, kept  # noqa: E402

from lumina_plugin.atomic import write_atomic  # noqa: E402
from lumina_plugin.conditions import attributes_for  # noqa: E402
from lumina_plugin.gradients import Example  # noqa: E402
from lumina_plugin.models import load_musicgen  # noqa: E402
from lumina_plugin.prepared import progress_bar  # noqa: E402
from lumina_plugin.unlearning.attribute import SHORT  # noqa: E402
from lumina_plugin.unlearning.fisher import (  # noqa: E402
    Fisher,
    adam_fisher,
    diagonal_fisher,
    kronecker_fisher,
)
from lumina_plugin.unlearning.masks import Piece  # noqa: E402
from lumina_plugin.unlearning.moments import second_moments  # noqa: E402
from lumina_plugin.unlearning.opened import open_subject  # noqa: E402
from lumina_plugin.unlearning.recipe import UnlearningRecipe, unlearning_recipe  # noqa: E402
from lumina_plugin.unlearning.scoring import Unlearner  # noqa: E402
from lumina_plugin.unlearning.step import forget  # noqa: E402
from lumina_plugin.validation.queries import free_generations  # noqa: E402
from lumina_plugin.validation.results import digest, table  # noqa: E402
from lumina_plugin.workflows import quickstart_run  # noqa: E402

KINDS, CORES, BATCHES, ROUNDS = ('diagonal', 'kronecker', 'adam'), (1, 2), (1, 4, 16), 3


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


# -- one query --------------------------------------------------------------------------------------------------------

def long_query(run: Path, recipe: UnlearningRecipe, subject: tp.Any) -> Piece:
    """A generation of thirty seconds, in three chunks."""
    assert subject.tokenizer is not None
    musicgen = load_musicgen(run, 'cpu')
    musicgen.set_generation_params(duration=30, top_k=50, temperature=0.6)
    torch.manual_seed(0)
    _, codes = musicgen.generate(['a slow waltz for plucked strings with a warm pad'], return_tokens=True)
    chunks = subject.tokenizer.finished(codes[0]).chunks
    attributes = attributes_for(subject.module, 'a slow waltz for plucked strings with a warm pad')
    return subject.query_of(Piece('query', [Example(one.codes, 0, one.frames, attributes) for one in chunks]), recipe)


def fisher_of(kind: str, unlearner_of: tp.Callable[[Fisher], Unlearner], subject: tp.Any,
              recipe: UnlearningRecipe) -> tp.Tuple[Unlearner, Watch]:
    """Fisher information made anew, and what it took."""
    learner, songs = subject.learner(recipe), subject.songs_of(recipe)
    with Watch() as made:
        if kind == 'adam':
            found: Fisher = adam_fisher(learner, second_moments(subject.folder / 'checkpoint.th', subject.module))
        else:
            found = (diagonal_fisher if kind == 'diagonal' else kronecker_fisher)(learner, songs)
    return unlearner_of(found), made


def one_query(run: Path, kind: str, threads: int) -> Facts:
    """Seconds of the Fisher information, and of one query in its parts: medians of a few rounds."""
    torch.set_num_threads(threads)
    subject, recipe = open_subject(run), unlearning_recipe('default', fisher=kind)
    query = long_query(run, recipe, subject)
    songs = subject.songs_of(recipe)
    unlearner, made = fisher_of(kind, lambda fisher: Unlearner(subject.learner(recipe), fisher, songs, recipe), subject,
                                recipe)
    with Watch() as before:
        unlearner.before()
    rounds = []
    for _ in range(ROUNDS + 1):  # the first warms up
        with Watch() as step:
            forget(unlearner.learner, unlearner.fisher, query, recipe, len(songs))
        with Watch() as whole:
            unlearner.scores([query])
        rounds.append((step, whole))
    facts: Facts = {'chunks': sum(len(song.examples) for song in songs), 'songs': len(songs)}
    for clock in ('wall', 'cpu'):
        steps, wholes = ([getattr(one[part], clock) for one in rounds[1:]] for part in (0, 1))
        facts.update({f'fisher_{clock}': getattr(made, clock), f'before_{clock}': getattr(before, clock),
                      f'step_{clock}': statistics.median(steps), f'whole_{clock}': statistics.median(wholes)})
    return facts


def one(run: Path, out: Path) -> str:
    """The table of one query."""
    rows = []
    for threads in CORES:
        for kind in KINDS:
            facts = [run.name, kind, threads]
            if threads > cores() and not (out / 'kept' / f'one-{digest(facts)}.json').is_file():
                continue
            found = kept(out, 'one', facts, lambda k=kind, n=threads: one_query(run, k, n))
            rows.append([threads, kind, *(
                f"{found[f'{part}_wall']:.2f} ({found[f'{part}_cpu']:.2f})" for part in ('fisher', 'step')),
                *(f"{found[f'whole_{clock}'] - found[f'step_{clock}']:.2f}" for clock in ('wall',)),
                f"{found['whole_wall']:.2f} ({found['whole_cpu']:.2f})"])
    about = (f"One generation of 30 s against the {found['songs']} songs ({found['chunks']} chunks) of the quickstart; "
             f"seconds on the clock (of the processor), medians of {ROUNDS} rounds. The step is forgetting the query; "
             "the pass reads every song's loss. Fisher information is made once per checkpoint.\n\n")
    return '# One query\n\n' + about + table(
        ['cores', 'Fisher information', 'made once, s', 'step, s', 'pass over the songs, s', 'query, s'], rows)


# -- many songs -------------------------------------------------------------------------------------------------------

def fast(out: Path, songs: int, queries: int) -> str:
    """The tables of a shortlist."""
    torch.set_num_threads(1)
    bench = open_bench(many_songs_run(out, songs, cores()), queries)
    found = {**measured(bench, out), **measured_sketched(bench, out)}
    exact = found['exact']

    def row(label: str, name: str, short: str) -> tp.List[str]:
        ratio = statistics.median(found[f'{name}_cpu'] / found['exact_cpu'])
        seconds = [f"{statistics.median(found[f'{one}_wall']):.2f} ({statistics.median(found[f'{one}_cpu']):.2f})"
                   if one else '' for one in (short, name)]
        return [label, *seconds, f'{ratio:.3f}', f'{overlap(exact, found[name]):.3f}']
    rows = [row(f'exact, all {exact.shape[1]:,} songs', 'exact', ''),
            row(f'fast, {SHORT:.0%} of the songs by sketches and fingerprints', 'sketched', 'ranked'),
            row(f'fast, {SHORT:.0%} of the songs by fingerprints alone', 'fast', 'short')]
    return ('# A shortlist\n\n'
            f'{exact.shape[1]:,} excerpts of 10 s from the embedded generator, on which a model of the quickstart\'s '
            f'size was trained; {len(exact)} free generations of it; recipe `default`; one core. Seconds on the clock '
            '(of the processor) of single queries, medians; ratios are of the processor\'s.\n\n'
            + table(['way', 'shortlist, s', 'query, s', '÷ exact', f'of the exact top {TOP}'], rows)
            + f'\nPart of the exact top {TOP} that shortlists of other lengths hold, by how songs are ranked:\n\n'
            + recalls(exact, ways(bench, out)))


# -- many queries -----------------------------------------------------------------------------------------------------

def many_queries(run: Path, queries: int) -> Facts:
    """Seconds of so many queries, served in batches of several sizes in turn, by size: medians of rounds."""
    torch.set_num_threads(1)
    subject, recipe = open_subject(run), unlearning_recipe('default')
    unlearner = subject.unlearner(recipe, progress_bar)
    pieces = [subject.query_of(Piece(query.id, [query.example(subject.module, False)]), recipe)
              for query in free_generations(subject.module, queries, 250)]
    unlearner.scores(pieces[:1])
    seconds: tp.Dict[int, tp.List[Watch]] = {size: [] for size in BATCHES}
    for _ in range(ROUNDS):
        for size, watches in seconds.items():
            with Watch() as watch:
                unlearner.scores(pieces[:size])
            watches.append(watch)
    flat = []
    for _ in range(ROUNDS):
        with Watch() as watch:
            unlearner.linearised(pieces)
        flat.append(watch)
    agree = overlap(unlearner.scores(pieces).scores, unlearner.linearised(pieces))
    return {**{f'{size}_{clock}': statistics.median(getattr(one, clock) for one in watches) / size
               for size, watches in seconds.items() for clock in ('wall', 'cpu')},
            **{f'linear_{clock}': statistics.median(getattr(one, clock) for one in flat) / len(pieces)
               for clock in ('wall', 'cpu')}, 'agree': agree}


def batches(run: Path, out: Path, queries: int) -> str:
    """The table of many queries."""
    found = kept(out, 'batches', [run.name, queries, 1], lambda: many_queries(run, queries))
    rows = [[f'exact, {size} at once', f"{found[f'{size}_wall']:.2f} ({found[f'{size}_cpu']:.2f})",
             f"{found[f'{size}_wall'] / found['1_wall']:.3f} ({found[f'{size}_cpu'] / found['1_cpu']:.3f})", 1]
            for size in BATCHES]
    rows.append([f'linearised, {queries} at once', f"{found['linear_wall']:.2f} ({found['linear_cpu']:.2f})",
                 f"{found['linear_wall'] / found['1_wall']:.3f} ({found['linear_cpu'] / found['1_cpu']:.3f})",
                 f"{found['agree']:.3f}"])
    return ('# Many queries\n\nGenerations of 10 s against the quickstart\'s songs, one core, in turn in one '
            f'process; seconds per query on the clock (of the processor), medians of {ROUNDS} rounds.\n\n'
            + table(['way', 's per query', '÷ one at a time', f'of the exact top {TOP}'], rows))


def main(run: tp.Annotated[tp.Optional[str], typer.Argument()] = None, out: Path = Path('outputs/unlearning-benchmark'),
         songs: int = 1000, queries: int = 16, only: tp.Optional[tp.List[str]] = None,
         results: Path = Path('outputs/unlearning')) -> None:
    """Measure, print, and, unless `--only` leaves something out, write cost.md into `--results`."""
    from lumina_plugin.models import run_folder
    found = run_folder(run) if run else quickstart_run()
    make = {'one': lambda: one(found, out), 'fast': lambda: fast(out, songs, queries),
            'batches': lambda: batches(found, out, queries), 'cost': lambda: cost(found, out)}
    sections = []
    for name in only or make:
        sections.append(make[name]())
        print(sections[-1], flush=True)
    if not only:
        write_atomic(results / 'cost.md', '\n'.join(sections))


if __name__ == '__main__':
    typer.run(main)
