"""How far is a projected cosine from the cosine of the whole gradients? Prints Markdown tables.

    python benchmarks/projection_error.py [RUN] [--songs 640] [--unseen 80] [--docs]

RUN is a run of the quickstart (its folder or signature; the finished one below outputs/ unless said). Songs are those
of the embedded catalogue, the held-out ones, and as many of its endless further ones as are asked for, each with a
composition and a production of its own: more songs than D, and songs that no fit sees. The first ten seconds of each
are taken. Gradients are those of recipe `default` (margin, unit-normed blocks) at the run's last checkpoint, captured
whole, so that every projection here works on the very same numbers. `--docs` writes docs/projection.md.
"""

import dataclasses
import functools
import platform
import sys
import time
import typing as tp
from pathlib import Path

import torch
import typer

from lumina_plugin import compat

compat.install()

from lumina_plugin.capture import full_gradient  # noqa: E402  (after the shims)
from lumina_plugin.channels import Block  # noqa: E402
from lumina_plugin.conditions import attributes_for  # noqa: E402
from lumina_plugin.fingerprint import Fingerprinter, Song  # noqa: E402
from lumina_plugin.gradients import Example  # noqa: E402
from lumina_plugin.projection import (  # noqa: E402
    BlockReducers,
    FittedProjection,
    Projection,
    RandomProjection,
    unit_rows,
)
from lumina_plugin.recipe import get_recipe  # noqa: E402

SEEDS = (0, 1)  # of whatever is random: figures are means over them
SECONDS = 10  # of each song
AT_ONCE = 96  # rows that are projected together; a sparse projection makes copies


@dataclasses.dataclass(frozen=True)
class Factors:
    """What both sides of each weight are multiplied with: random (orthonormal, as shipped), signs (independent ones,
    for comparison) or fitted, so many columns; `whole` is nothing."""
    kind: str
    width: int = 0

    @property
    def name(self) -> str:
        return 'whole' if self.kind == 'whole' else f'{self.kind} {self.width}'


@dataclasses.dataclass(frozen=True)
class Last:
    """The projection to D numbers: `rank` principal directions, random signs of the residual in the others.

    Rank 0 is the random projection, rank D has no residual: its vectors are left shorter than 1 by what they miss.
    """
    dim: int
    rank: int

    @property
    def name(self) -> str:
        if not 0 < self.rank < self.dim:
            return f'{self.dim} signs' if self.rank == 0 else f'{self.dim} directions, lengths kept'
        return f'{self.rank} directions + {self.dim - self.rank} signs'


WHOLE, FITTED, RANDOM = Factors('whole'), Factors('fitted', 64), Factors('random', 64)
NARROW = [Factors(kind, width) for kind in ('fitted', 'random') for width in (32, 16)]
SIGNS = [Factors('signs', width) for width in (64, 32, 16)]
WIDE = [Last(512, 0), Last(512, 448), Last(512, 256), Last(512, 512)]
SMALL = [Last(64, 0), Last(64, 56), Last(64, 64)]
Plan = tp.Mapping[Factors, tp.Sequence[Last]]
PLAN: Plan = {  # what is measured, beside the factors alone
    WHOLE: WIDE + SMALL, FITTED: WIDE + SMALL, RANDOM: WIDE, **{factors: WIDE[:2] for factors in NARROW},
    **{factors: [] for factors in SIGNS}}
CATALOGUE = 97  # songs of the embedded catalogue: fewer than D, so that a fit's rank is their number
FEW: Plan = {factors: WIDE[:2] for factors in (WHOLE, FITTED, RANDOM)}


# -- gradients ---------------------------------------------------------------------------------------------------------

def render_songs(seen: int, unseen: int, musicgen: tp.Any) -> tp.Tuple[tp.List[Song], tp.List[Song]]:
    """Songs as codes: the catalogue's 97 and more that fits see; the 16 held-out ones and more that none does."""
    from lumina_plugin.codec import codec_hash
    from lumina_plugin.embedded.songs import songs_of
    from lumina_plugin.tokens import Tokenizer
    trained, held_out = songs_of('train'), songs_of('heldout')
    if seen < len(trained) or unseen < len(held_out):
        raise typer.BadParameter(f"at least {len(trained)} songs and {len(held_out)} unseen ones are needed")
    extra = songs_of('extra', count=seen - len(trained) + unseen - len(held_out))
    tokenizer = Tokenizer(musicgen.compression_model, codec_hash(musicgen.compression_model))

    def song(spec: tp.Any) -> Song:
        wav = torch.from_numpy(spec.render())[None, :SECONDS * 16000]
        chunk = tokenizer.audio(wav).chunks[0]
        return Song(spec.id, [Example(chunk.codes, 0, chunk.frames, attributes_for(musicgen.lm, spec.description))])

    made = [song(spec) for spec in [*trained, *extra[:seen - len(trained)], *held_out, *extra[seen - len(trained):]]]
    return made[:seen], made[seen:]


def gradients_of(fingerprinter: Fingerprinter, songs: tp.Sequence[Song]) -> tp.Dict[str, torch.Tensor]:
    """Joined whole gradients by channel, [n, R]: blocks of length 1, which is all that matters with `block_norm`."""
    joins = {channel: BlockReducers(blocks, {}, True) for channel, blocks in fingerprinter.channels.items()}
    rows = {channel: torch.empty(len(songs), join.dim) for channel, join in joins.items()}
    whole = {name: full_gradient for name in fingerprinter.blocks}
    for index, song in enumerate(songs):
        gradients, _ = fingerprinter.song_gradients([song.examples], whole)
        for channel, join in joins.items():
            rows[channel][index] = join.join(gradients)[0][0]
    return rows


def reduced(rows: torch.Tensor, reducers: BlockReducers) -> torch.Tensor:
    """What `TwoSided` would have captured, joined: [n, R] -> [n, R']."""
    parts = []
    for some in rows.split(AT_ONCE):
        gradients, first = {}, 0
        for block in reducers.blocks:
            size = block.out_features * block.in_features
            gradient = some[:, first:first + size].unflatten(1, (block.out_features, block.in_features))  # [n, o, i]
            u_in, u_out = reducers.factors.get(f'{block.name}.in'), reducers.factors.get(f'{block.name}.out')
            gradient = gradient if u_in is None else gradient @ u_in
            gradients[block.name] = gradient if u_out is None else u_out.T @ gradient
            first += size
        parts.append(reducers.join(gradients)[0])
    return torch.cat(parts)


def sign_factors(blocks: tp.Sequence[Block], width: int, seed: int) -> BlockReducers:
    """Independent signs / √width in place of orthonormal columns, for comparison."""
    generator = torch.Generator().manual_seed(seed)
    return BlockReducers(blocks, {
        f'{block.name}.{side}': (torch.randint(0, 2, (size, width), generator=generator) * 2. - 1) / width ** 0.5
        for block in blocks for side, size in (('in', block.in_features), ('out', block.out_features))
        if size > width}, True)


# -- projections -------------------------------------------------------------------------------------------------------

def reducers_of(factors: Factors, seed: int, blocks: tp.Sequence[Block],
                fitted: tp.Callable[[int], BlockReducers]) -> BlockReducers:
    """The factors of a channel's blocks."""
    if factors.kind == 'fitted':
        return fitted(factors.width)
    if factors.kind == 'random':
        return BlockReducers.random(blocks, factors.width, seed, True)
    return sign_factors(blocks, factors.width, seed)


def vectors_of(last: Last, fit: tp.Optional[FittedProjection], joined: torch.Tensor, seed: int) -> torch.Tensor:
    """Vectors [n, D] of joined gradients [n, R]; `fit` has the principal directions of the songs that a fit sees."""
    if last.rank == 0 or fit is None:
        projection: Projection = RandomProjection(joined.shape[1], last.dim, seed)
    else:  # the leading directions of a wider fit are those of a narrower one
        projection = FittedProjection(fit.mean, fit.basis[:, :last.rank], last.dim, seed, fit.songs,
                                      residual=last.rank < last.dim)
    return torch.cat([projection(some) for some in joined.split(AT_ONCE)])


def cosines_of(factors: Factors, lasts: tp.Sequence[Last], seed: int, rows: torch.Tensor, seen: int,
               blocks: tp.Sequence[Block], fitted: tp.Callable[[int], BlockReducers]
               ) -> tp.Iterator[tp.Tuple[tp.Optional[Last], torch.Tensor]]:
    """Cosines [n, n] between all songs after the factors alone (None), then after each last projection."""
    joined = rows if factors is WHOLE else reduced(rows, reducers_of(factors, seed, blocks, fitted))
    if factors is not WHOLE:
        yield None, joined @ joined.T
    rank = max((last.rank for last in lasts), default=0)
    fit = FittedProjection.fit(joined[:seen], rank, 0, False, seed) if rank else None
    for last in lasts:
        vectors = vectors_of(last, fit, joined, seed)
        yield last, vectors @ vectors.T


# -- errors ------------------------------------------------------------------------------------------------------------

PAIRS = ('seen × seen', 'unseen × seen', 'unseen × unseen')


def pairs_of(cosines: torch.Tensor, seen: int, pairs: str) -> torch.Tensor:
    """Cosines of queries (rows) with songs (columns); a song is never paired with itself."""
    query, song = pairs.split(' × ')
    part = {'seen': slice(0, seen), 'unseen': slice(seen, None)}
    found = cosines[part[query], part[song]]
    return found if query != song else found[~torch.eye(len(found), dtype=torch.bool)].view(len(found), -1)


@dataclasses.dataclass(frozen=True)
class Errors:
    """Of projected cosines: mean, root mean square and 95th percentile of the size; mean rank correlation per query,
    share of queries whose nearest song stays the nearest."""
    bias: float
    rms: float
    most: float
    spearman: float
    top: float

    @classmethod
    def between(cls, found: torch.Tensor, true: torch.Tensor) -> 'Errors':
        error = (found - true).double()
        ranks = [unit_rows(_centred(x.argsort(1).argsort(1).double())) for x in (found, true)]
        return cls(float(error.mean()), float(error.square().mean().sqrt()), float(error.abs().quantile(0.95)),
                   float((ranks[0] * ranks[1]).sum(1).mean()),
                   float((found.argmax(1) == true.argmax(1)).double().mean()))

    @classmethod
    def mean(cls, several: tp.Sequence['Errors']) -> 'Errors':
        return cls(*(sum(values) / len(values) for values in zip(*map(dataclasses.astuple, several), strict=True)))

    def cells(self) -> str:
        return (f'{100 * self.bias:+.1f} / {100 * self.rms:.1f} / {100 * self.most:.1f} | '
                f'{self.spearman:.2f} / {100 * self.top:.0f} %')


def _centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(1, keepdim=True)


def spread_of(rows: torch.Tensor, seen: int) -> str:
    """Mean and standard deviation of the cosines that are to be kept, as cells of a table."""
    cosines = rows @ rows.T
    return ' | '.join(f'{100 * x.mean():.1f} ± {100 * x.std():.1f}'
                      for x in (pairs_of(cosines, seen, pairs) for pairs in PAIRS))


COLUMNS = ' | '.join(f'{pairs}: bias / RMS / 95 % | ρ / top 1' for pairs in PAIRS)
HEAD = [f'| channel | factors | projection | {COLUMNS} |', '|---|---|---|' + '---|---|' * len(PAIRS)]
Row = tp.Tuple[Factors, tp.Optional[Last]]


def measure(plan: Plan, rows: torch.Tensor, seen: int, blocks: tp.Sequence[Block],
            fitted: tp.Callable[[int], BlockReducers]) -> tp.Dict[Row, str]:
    """A channel's errors as cells of a table; the first `seen` of its joined gradients [n, R] are what a fit sees."""
    true = rows @ rows.T
    cells: tp.Dict[Row, str] = {}
    for factors, lasts in plan.items():
        found: tp.Dict[tp.Optional[Last], tp.List[tp.List[Errors]]] = {}
        for seed in SEEDS if factors.kind in ('random', 'signs') else SEEDS[:1]:
            for last, cosines in cosines_of(factors, lasts, seed, rows, seen, blocks, fitted):
                found.setdefault(last, []).append([Errors.between(pairs_of(cosines, seen, pairs),
                                                                  pairs_of(true, seen, pairs)) for pairs in PAIRS])
        for last in [None, *lasts] if factors is not WHOLE else lasts:
            means = [Errors.mean(several) for several in zip(*found[last], strict=True)]
            cells[factors, last] = ' | '.join(mean.cells() for mean in means)
            print(factors.name, last.name if last else 'alone', cells[factors, last], file=sys.stderr, flush=True)
    return cells


def table(cells: tp.Mapping[str, tp.Mapping[Row, str]], dim: tp.Optional[int], rank: tp.Optional[int] = None) -> str:
    """The rows of one D, or of the factors alone; `rank` where a fit found so few directions."""
    lines = list(HEAD)
    for channel, rows in cells.items():
        for (factors, last), text in rows.items():
            if (last.dim if last else None) == dim:
                shown = last if last is None or rank is None else Last(last.dim, min(last.rank, rank))
                lines.append(f"| {channel} | {factors.name} | {shown.name if shown else 'none'} | {text} |")
    return '\n'.join(lines)


def main(run: tp.Annotated[tp.Optional[str], typer.Argument()] = None, songs: int = 640, unseen: int = 80,
         threads: int = 1, docs: bool = False) -> None:
    """Measure and print; --docs writes docs/projection.md."""
    from lumina_plugin.models import load_musicgen
    from lumina_plugin.workflows import quickstart_run
    begun = time.perf_counter()
    torch.set_num_threads(threads)
    musicgen = load_musicgen(run or quickstart_run(), 'cpu')
    known, strangers = render_songs(songs, unseen, musicgen)
    print(f'{songs} + {unseen} songs as codes after {time.perf_counter() - begun:.0f} s', file=sys.stderr)
    fingerprinter = Fingerprinter(musicgen.lm, get_recipe('default'))
    rows = gradients_of(fingerprinter, [*known, *strangers])
    print(f'gradients after {time.perf_counter() - begun:.0f} s', file=sys.stderr)

    @functools.cache
    def fitted(count: int, width: int) -> tp.Dict[str, BlockReducers]:
        recipe = get_recipe('default', projection={'block_width': width})
        return Fingerprinter(musicgen.lm, recipe).fit_reducers(known[:count])

    many: tp.Dict[str, tp.Dict[Row, str]] = {channel: {} for channel in fingerprinter.channels}
    few = {channel: dict(cells) for channel, cells in many.items()}
    spread = {channel: '' for channel in many}
    for channel in sorted(rows, key=lambda name: rows[name].shape[1]):  # the largest when it is alone in memory
        whole, blocks = rows.pop(channel), fingerprinter.channels[channel]
        spread[channel] = spread_of(whole, songs)
        many[channel] = measure(PLAN, whole, songs, blocks, lambda width, c=channel: fitted(songs, width)[c])
        whole = torch.cat([whole[:CATALOGUE], whole[songs:]])
        few[channel] = measure(FEW, whole, CATALOGUE, blocks, lambda width, c=channel: fitted(CATALOGUE, width)[c])
        del whole
    found = {
        'cosines': '\n'.join(['| channel | ' + ' | '.join(PAIRS) + ' |', '|---|' + '---|' * len(PAIRS),
                              *(f'| {channel} | {cells} |' for channel, cells in spread.items())]),
        'd512': table(many, 512), 'd64': table(many, 64), 'factors': table(many, None),
        'few': table(few, 512, CATALOGUE), 'songs': str(songs), 'unseen': str(unseen),
        'machine': f'{platform.machine()}, {threads} thread, Python {platform.python_version()}, '
                   f'torch {torch.__version__}'}
    text = Path(__file__).with_name('projection_error_head.md').read_text()
    for name, value in found.items():
        text = text.replace('{' + name + '}', value)
    print(text)
    print(f'{time.perf_counter() - begun:.0f} s in all', file=sys.stderr)
    if docs:
        (Path(__file__).resolve().parents[1] / 'docs' / 'projection.md').write_text(text)


if __name__ == '__main__':
    typer.run(main)
