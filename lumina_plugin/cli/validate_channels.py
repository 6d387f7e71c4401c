"""`lumina validate channels`: what each channel finds, as it is and separated."""

import typing as tp
from pathlib import Path

import typer

from .validate import OUT, validate_app


@validate_app.command('channels')
def channels(
    out: tp.Annotated[Path, typer.Option('--out', '-o', help="Folder for everything that is made.")] = OUT,
    model: tp.Annotated[tp.Optional[str], typer.Option(
        '--model', '-m', help="Folder or signature of a dora run; the standard suite's unless said.")] = None,
    store: tp.Annotated[tp.Optional[Path], typer.Option(help="A store of the run; its first one unless said.")] = None,
    songs: tp.Annotated[int, typer.Option(min=2, help="Songs of the catalogue that are changed to fit on.")] = 96,
    changes: tp.Annotated[int, typer.Option(min=1, help="How often each of them is changed, per channel.")] = 6,
    compositions: tp.Annotated[int, typer.Option(min=2, help="Compositions that are measured on.")] = 12,
    productions: tp.Annotated[int, typer.Option(min=2, help="Productions that are measured on.")] = 8,
    every: tp.Annotated[bool, typer.Option(
        '--every-checkpoint', help="Mean over all checkpoints, as the store serves, rather than the last.")] = False,
    keep: tp.Annotated[bool, typer.Option(
        '--keep', help="Write the separations that were fitted on own songs beside the store.")] = False,
) -> None:
    """Does channel P find compositions, and M productions? On crossed songs that nothing was fitted on.

    Where there is a ground truth of the run, also what a separation costs. Writes channels.md, channels.json and
    channels.png; reports made with the store from then on say what was found.
    """
    from ..channel_verdict import keep_verdict
    from ..errors import LuminaError
    from ..models import run_folder, run_stores
    from ..store import FingerprintStore
    from ..validation.channels import Sizes, measure
    from ..validation.ground_truth import FILE, QUERIES
    from ..validation.truth import GroundTruth
    known = out / 'truth'
    truth = GroundTruth.load(known / FILE) if (known / FILE).is_file() else None
    if model is None:
        if not (known / QUERIES).is_file():
            raise LuminaError(f"There is no standard run below {out}; make it with `lumina validate ground-truth`, or "
                              "name a run by --model.")
        model = str(out / 'xps' / GroundTruth.load(known / QUERIES).facts['run'])
    if truth is not None and truth.facts['run'] != Path(model).name:
        truth = None  # of another run
    sizes = Sizes(songs, changes, compositions, productions)
    table = measure(model, out / 'channels', store, sizes, every, keep, truth)
    table.save(out / 'channels')
    found = tp.cast(Path, run_folder(model))
    keep_verdict(FingerprintStore.open(store or run_stores(found)[0]),
                 f"{table.verdict} (Measured at {table.facts['checkpoints']}.)")
    print(table.markdown())
    print(f"Written: {out / 'channels'}/channels.md, channels.json, channels.png")
