"""`lumina store`: looking after fingerprint stores. Nothing heavy is imported before a command needs it."""

import json
import typing as tp
from pathlib import Path

import typer

from ..errors import LuminaError

store_app = typer.Typer(no_args_is_help=True,
                        help="Look after a fingerprint store: what is in it, is it whole, who is withdrawn from it.")

_Path = tp.Annotated[Path, typer.Argument(metavar='STORE', help="Folder of the store, e.g. RUN/lumina/default.")]


@store_app.command()
def info(
    path: _Path,
    json_: tp.Annotated[bool, typer.Option('--json', help="Print everything, as JSON.")] = False,
) -> None:
    """What a store holds, and what there is to do about it."""
    from ..store import FingerprintStore
    found = FingerprintStore.open(path).info()
    if json_:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    identity, tracks = found['identity'], found['tracks']
    others = ', '.join(f'{count} {kind}' for kind, count in tracks.items() if kind not in ('total', 'ok') and count)
    print(f"Store    {path}, format {found['format_version']}, {_size(found['bytes'])}\n"
          f"Hash     {found['hash']}\n"
          f"Model    {identity['model_id']}, recipe {identity['recipe_hash']}\n"
          f"Vectors  {identity['dim']} numbers of {found['dtype']} in channels {', '.join(identity['channels'])}\n"
          f"Songs    {tracks['total']}{f' ({others})' if others else ''}")
    for record in found['checkpoints']:
        print(f"         {record['name']}: {record['songs']} fingerprints in {record['shards']} shards, "
              f"{'complete' if record['complete'] else 'not complete'}"
              + (f", chance by {_outside(record)}" if record['outside_songs'] else ''))
    for note in found['notes']:
        print(f'\n{note}')


def _outside(record: tp.Mapping[str, tp.Any]) -> str:
    """What a checkpoint's chance is measured by, recordings and generations apart."""
    kinds = ' and '.join(f'{count} {kind}{"s" if count != 1 else ""}' for kind, count in record['outside'].items())
    return f'{kinds} from outside' if kinds else f"{record['outside_songs']} outside songs, in a file that is damaged"


def _size(count: int) -> str:
    return f'{count / 2 ** 20:.1f} MiB' if count >= 2 ** 20 else f'{count / 2 ** 10:.1f} KiB'


@store_app.command()
def verify(path: _Path) -> None:
    """Read every byte and compare it with its checksum. Exit code 2 when something is wrong."""
    from ..store import FingerprintStore
    problems = FingerprintStore.open(path).verify()
    for problem in problems:
        print(problem)
    if problems:
        raise LuminaError(f"{path} is damaged, see above; restore these files from a backup, or run `lumina store "
                          f"rebuild {path}` and fingerprint again, which redoes the songs of damaged shards only.")
    print(f'{path} is whole')


@store_app.command()
def rebuild(path: _Path) -> None:
    """Make a lost or damaged manifest anew from the shards; damaged shards are left out and named."""
    from ..store import FingerprintStore
    store = FingerprintStore.rebuild_manifest(path)
    print(f"{path}: {len(store.tracks)} songs, {len(store.checkpoints)} checkpoints")


@store_app.command()
def withdraw(
    path: _Path,
    ids: tp.Annotated[tp.List[str], typer.Argument(metavar='SONG...', help="Ids of songs, as reports print them.")],
    reason: tp.Annotated[str, typer.Option(help="Why; kept with the id and the date.")] = '',
) -> None:
    """Withdraw songs whose owner has opted out: no attribution by this store names them any more."""
    from ..store import FingerprintStore
    withdrawn = FingerprintStore.open(path).withdraw(ids, reason)
    print(f"{len(withdrawn)} withdrawn, {len(set(ids)) - len(withdrawn)} had been before; to remove their fingerprints "
          f"from disk: lumina store compact {path}")
    beside = [other.parent for other in sorted(path.resolve().parent.glob('*/manifest.json'))
              if other.parent != path.resolve()]
    for other in beside:
        print(f"{other} is another store beside it: withdraw from it too.")


@store_app.command()
def compact(path: _Path) -> None:
    """Remove from disk what is left of withdrawn and replaced songs, and of interrupted writers."""
    from ..store import FingerprintStore
    rewritten = FingerprintStore.open(path).compact()
    print(f"{len(rewritten)} shards rewritten; of withdrawn songs {path} has no vectors any more, only id, date and "
          "reason. Projections that were fitted while they were there still hold their directions: fingerprint into a "
          "new store to be rid of those too.")


@store_app.command()
def migrate(path: _Path) -> None:
    """Bring a store of an older format up to date, in place."""
    from ..store import FingerprintStore
    store = FingerprintStore.migrate(path)
    print(f"{path} has format {store.manifest.format_version}")


@store_app.command()
def merge(
    out: tp.Annotated[Path, typer.Argument(metavar='NEW', help="Folder of the new store.")],
    sources: tp.Annotated[tp.List[Path], typer.Argument(metavar='STORE...', help="Two stores or more.")],
) -> None:
    """Make one store of several that hold parts of a catalogue, made with the same model, recipe and projections."""
    from ..passes import measured_noise
    from ..store import merge as merge_stores
    store = merge_stores(out, sources, measured_noise)
    print(f"{len(store.tracks)} songs of {len(sources)} stores in {out}")


@store_app.command()
def export(
    path: _Path,
    out: tp.Annotated[Path, typer.Option('--out', '-o', help="Folder for the files.")],
    format: tp.Annotated[str, typer.Option('--format', '-f', help="parquet, npz or npy.")] = 'parquet',
    checkpoint: tp.Annotated[tp.Optional[tp.List[str]], typer.Option(
        '--checkpoint', help="Name of a checkpoint, may be repeated; all complete ones unless said.")] = None,
) -> None:
    """Write fingerprints and norms as files for other tools."""
    from ..store import FingerprintStore
    from ..store import export as export_store
    for file in export_store(FingerprintStore.open(path), out, format, checkpoint):
        print(file)
