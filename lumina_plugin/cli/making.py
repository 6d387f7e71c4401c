"""`lumina generate`. Nothing heavy is imported before a command needs it."""

import typing as tp
from pathlib import Path

import typer

from ..errors import LuminaError
from .options import Device, Model, Quiet, Store

if tp.TYPE_CHECKING:
    from ..provenance import Signing
    from ..workflows import Clip


def generate(
    out: tp.Annotated[Path, typer.Option('--out', '-o', help="Folder; each clip gets one of its own in it.")],
    text: tp.Annotated[tp.Optional[str], typer.Option('--prompt', '--text', help="What it should sound like.")] = None,
    continue_from: tp.Annotated[tp.Optional[str], typer.Option(
        '--continue', metavar='FILE|SONG_ID', help="Recording, or song of the store, to continue.")] = None,
    melody: tp.Annotated[tp.Optional[Path], typer.Option(
        '--melody', help="Recording whose melody to follow; needs a melody model.")] = None,
    prompt_seconds: tp.Annotated[float, typer.Option(min=0.1, help="How much of the recording is the prompt.")] = 3.,
    offset: tp.Annotated[float, typer.Option(
        min=0., help="Where in the recording the prompt begins, in seconds.")] = 0.,
    seconds: tp.Annotated[float, typer.Option(help="Length of each clip, prompt included.")] = 10.,
    count: tp.Annotated[int, typer.Option('--n', '-n', min=1, help="Clips.")] = 1,
    seed: tp.Annotated[int, typer.Option(help="Seed of the first clip; the next have the next ones.")] = 0,
    temperature: tp.Annotated[float, typer.Option(min=0.01, help="Above 1 is wilder, below 1 safer.")] = 1.,
    top_k: tp.Annotated[int, typer.Option(min=1, help="Sample among so many codes.")] = 250,
    name: tp.Annotated[str, typer.Option(help="Name of the clips.")] = 'clip',
    format: tp.Annotated[str, typer.Option('--format', '-f', help="wav, flac, mp3 or ogg.")] = 'wav',
    certificate: tp.Annotated[tp.Optional[Path], typer.Option(
        '--c2pa-cert', help="Certificate (PEM) to sign the clips by, as C2PA manifests; needs --c2pa-key.")] = None,
    key: tp.Annotated[tp.Optional[Path], typer.Option('--c2pa-key', help="Its private key (PEM).")] = None,
    model: Model = None, store: Store = None, device: Device = None, quiet: Quiet = False,
) -> None:
    """Generate music with attributions attached: audio with tags, a sidecar and a report (JSON, HTML, CSV) per clip.

    A clip that is there already, whole and of the same request, is kept: a run that was stopped goes on by the same
    command.
    """
    signing = _signing(certificate, key)
    from ..generation import Request, generate_clips, prompt_of
    from ..workflows import Studio, quickstart_run
    studio = Studio(model or quickstart_run(), store, device=device)
    prompt = prompt_of(studio.store, continue_from, prompt_seconds, offset) if continue_from is not None else None
    request = Request(text, prompt, melody, seconds, seed, top_k, temperature, kind=format.lower())
    reused = 0
    for made in generate_clips(studio, request, out, name, count, signing, progress=not quiet):
        reused += made.reused
        print(_told(made.clip, made.reused, count == 1, quiet))
    if count > 1 and not quiet:
        print(f'\n{count} clips in {out}' + (f', of which {reused} were there already' if reused else ''))


def _signing(certificate: tp.Optional[Path], key: tp.Optional[Path]) -> tp.Optional['Signing']:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise LuminaError("Signing takes a certificate and its key; give both --c2pa-cert and --c2pa-key.")
    from ..provenance import Signing
    signing = Signing(certificate, key)
    signing.check()  # before a model is loaded
    return signing


def _told(clip: 'Clip', reused: bool, alone: bool, quiet: bool) -> str:
    """A clip's whole table where it is the only one; else who gets what in a sentence per channel."""
    from ..report import words
    from ..report.render import render_table
    begin = f"\n{clip.folder}{' (was there already)' if reused else ''}"
    if alone:
        body = render_table(clip.report)
    else:
        body = '\n'.join(f'  {key}  {words.summary(key, channel, clip.report.query.silent)}'
                         for key, channel in clip.report.channels.items()).replace(words.NBSP, ' ')
    if quiet:
        return body
    overhead = words.overhead(clip.report).replace(words.NBSP, ' ')
    return '\n'.join(filter(None, (begin, body, overhead, f'Report: {clip.folder}/report.html' if alone else '')))
