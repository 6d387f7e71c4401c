"""The commands of `lumina`. Nothing heavy is imported before a command needs it."""

import collections
import logging
import os
import shutil
import sys
import typing as tp
from pathlib import Path

import typer

from ..errors import LuminaError
from . import making, reading, validate_channels, validate_run, validate_soak  # noqa: F401 (some register commands)
from .demo import demo
from .options import Device as _Device
from .options import Generations as _Generations
from .options import Source as _Source
from .store import store_app
from .unlearn import unlearn_app
from .unlearn_compare import register as register_compare
from .unlearn_draws import register as register_draws
from .validate import validate_app

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode='markdown', help="""
Which training songs shaped a generated song, by how much, and how sure are we?

Start with `lumina quickstart`: it renders a catalogue, trains a small MusicGen, fingerprints the catalogue alongside
and generates clips with attributions attached, on a CPU and offline. Then try `lumina attribute FILE` on a recording.
""")
catalogue_app = typer.Typer(no_args_is_help=True,
                            help="Make a catalogue from a folder of recordings, or look one over.")
app.add_typer(catalogue_app, name='catalogue')
app.add_typer(store_app, name='store')
app.add_typer(validate_app, name='validate')
app.add_typer(unlearn_app, name='unlearn')
register_compare(unlearn_app)
register_draws(unlearn_app)
app.command()(making.generate)
app.command()(making.attribute)
app.command()(reading.explain)
app.command()(reading.show)


@app.callback()
def _setup(
    verbose: tp.Annotated[bool, typer.Option('--verbose', '-v', help="Show what happens inside.")] = False,
) -> None:
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, format='%(message)s', stream=sys.stderr)
    for noisy in ('matplotlib', 'httpx', 'numba', 'urllib3', 'audiocraft', 'fsspec', 'asyncio', 'torio', 'filelock'):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@app.command()
def quickstart(
    out: tp.Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path('outputs'),
    override: tp.Annotated[tp.Optional[tp.List[str]], typer.Argument(
        metavar='[KEY=VALUE]...', help="Configuration keys for `dora run`, e.g. optim.epochs=4.")] = None,
    jobs: tp.Annotated[int, typer.Option(min=1, help="Processes that render songs.")] = 2,
) -> None:
    """The whole system once: catalogue, training with fingerprints, generations with attributions.

    About five minutes on two CPU cores; called again it reuses what is finished.
    """
    from ..quickstart import run_quickstart
    from ..report.render import render_table
    result = run_quickstart(out, override or [], jobs)
    for clip, report in zip(result.clips, result.reports, strict=True):
        print(f'\n{clip.name}')
        print(render_table(report))
    shown = Path(os.path.relpath(result.run))
    clip = Path(os.path.relpath(result.clips[0]))
    song = Path(os.path.relpath(out / 'embedded' / 'audio' / 'train' / 'song-001.wav'))
    model = '' if out == Path('outputs') else f' --model {shown}'  # without it, commands look below ./outputs
    activate = '' if shutil.which('lumina') else f'\n  . {os.path.relpath(sys.prefix)}/bin/activate'
    print(f"""
Stored  {os.path.relpath(result.store)}   (fingerprints of every checkpoint, both channels)
Reports {clip.parent}/*/report.html   (open one in a browser)

Try next:{activate}
  lumina attribute {song}{model}
      attribute any recording; this one is a song of the catalogue
  lumina generate --text "slow waltz" --out {os.path.relpath(out / 'generated')}{model}
      generate with attributions attached (--continue SONG.wav: go on from a recording)
  lumina fingerprint {shown} --recipe paper
      LUMINA's pipeline as its paper prints it, in a store beside the default one
  lumina demo{model}
      generate and attribute in a browser""")


@catalogue_app.command('build')
def catalogue_build(
    folder: tp.Annotated[Path, typer.Argument(help="Folder with recordings (wav, flac, ogg, mp3, m4a, aiff, opus).")],
    out: tp.Annotated[Path, typer.Option('--out', '-o', help="Folder for the manifest, data.jsonl.")],
    strict: tp.Annotated[bool, typer.Option(help="Stop at the first bad song instead of skipping it.")] = False,
) -> None:
    """Write an audiocraft manifest for a folder of recordings; bad ones are named, counted and skipped."""
    from ..catalogue import build_catalogue
    result = build_catalogue(folder, out, strict=strict)
    print(result.summary())


@catalogue_app.command('check')
def catalogue_check(path: tp.Annotated[Path, typer.Argument(help="Manifest (data.jsonl) or its folder.")]) -> None:
    """Look a catalogue over: missing, unreadable, silent and duplicate songs. Exit code 2 when something is wrong."""
    from ..catalogue import check_catalogue
    result = check_catalogue(path)
    print(result.summary())
    if not result.ok:
        raise LuminaError(f"{path} has songs that cannot be used as they are, listed above; remove or mend them.")


@app.command()
def fingerprint(
    model: _Source,
    catalogue: tp.Annotated[tp.Optional[Path], typer.Option(
        '--catalogue', '-c', help="Manifest of the songs; a run's own training songs unless said.")] = None,
    out: tp.Annotated[tp.Optional[Path], typer.Option('--out', '-o', help="Folder of the store.")] = None,
    recipe: tp.Annotated[str, typer.Option(
        '--recipe', '-r', help="default or paper; those that a run trained with, as it changed them.")] = 'default',
    settings: tp.Annotated[tp.Optional[tp.List[str]], typer.Option(
        '--set', metavar='KEY=VALUE', help="Change a key of the recipe, as in `--set projection.dim=256 --set "
                                           "name=wide`; may be repeated. The name is the store's folder's.")] = None,
    update: tp.Annotated[bool, typer.Option(
        '--update', help="Take a catalogue that has changed: fingerprint its new songs alone.")] = False,
    strict: tp.Annotated[bool, typer.Option(help="Stop at a song that cannot be read.")] = False,
    outside: tp.Annotated[tp.Optional[str], typer.Option(
        help="Songs that the model never saw, to measure chance by: a folder, a manifest, `generated` or `none`; as "
             "the run's fingerprint.outside unless said.")] = None,
    generations_of: _Generations = None,
    batch_size: tp.Annotated[int, typer.Option(min=1, help="Chunks of 10 s per pass.")] = 8,
    device: _Device = None,
) -> None:
    """Fingerprint a catalogue with a trained model. During a training, `dora run solver=lumina/…` does it alongside.
    Several processes share the work: `torchrun --nproc-per-node 2 -m lumina_plugin fingerprint …`."""
    from ..catalogue_pass import fingerprint_model, recipe_for
    keys = recipe_for(model, recipe, settings or [])
    store = fingerprint_model(model, catalogue, out, keys, strict, device, batch_size, update, outside, generations_of)
    if os.environ.get('RANK', '0') != '0':
        return  # under torchrun one process speaks for all
    unusable = [track for track in store.tracks if track.status != 'ok']
    for track in unusable:
        print(f'{track.status}: {track.id} ({track.reason})')
    print(f"{len(store.tracks) - len(unusable)} songs fingerprinted, {len(unusable)} skipped or silent, "
          f"{len(store.checkpoints)} checkpoints, in {store.path}"
          f"{' (this recipe asks for the last checkpoint alone)' if keys.checkpoints == 'last' else ''}")


@app.command()
def calibrate(
    source: tp.Annotated[str, typer.Argument(
        metavar='STORE|RUN', help="A store, or the folder or signature of a dora run: then all of its stores.")],
    songs: tp.Annotated[tp.Optional[Path], typer.Option(
        help="Songs that the model never saw, 64 or more: a folder, a manifest or `generated`; as the run's "
             "fingerprint.outside unless said.")] = None,
    count: tp.Annotated[int, typer.Option(min=1, help="Songs to take.")] = 100,
    generations_of: _Generations = None,
    batch_size: tp.Annotated[int, typer.Option(min=1, help="Chunks of 10 s per pass.")] = 8,
    model: tp.Annotated[tp.Optional[str], typer.Option(
        '--model', '-m', help="What the store was made with, where it lies in no run.")] = None,
    device: _Device = None,
) -> None:
    """Give a store what its reports tell chance by: fingerprints of songs outside of the catalogue.

    A training makes them by itself; this is for stores that have none, or with other songs. A recording is judged by
    recordings, a generation by generations of a model of other songs. Called again it changes nothing.
    """
    from ..chance import KINDS
    from ..null_pass import calibrate as calibrate_stores
    done = calibrate_stores(source, None if songs is None else str(songs), count, model, device, batch_size,
                            generations_of)
    for store, checkpoints in done.items():
        null = next((null for null in map(store.null, store.checkpoints) if null is not None), None)
        if null is not None:
            counts = collections.Counter(song.kind for song in null.songs)
            words = ' and '.join(f'{counts[kind]} {null.words(kind)}' for kind in KINDS if counts[kind])
            print(f"{store.path}: chance is measured by {words}, at {len(checkpoints)} checkpoints anew, hash "
                  f"{store.hash[:12]}")


app.command()(demo)


@app.command()
def doctor() -> None:
    """Say what is installed, which shims are active, and what works offline."""
    from ..doctor import collect
    findings = collect()
    width = max(len(topic) for topic, _, _ in findings)
    for topic, finding, ok in findings:
        print(f"{'ok ' if ok else '!! '} {topic:<{width}}  {finding}")
    if not all(ok for _, _, ok in findings):
        print("\nLines marked !! name what is missing and how to mend it.")
