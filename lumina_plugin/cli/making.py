"""`lumina generate` and `lumina attribute`. Nothing heavy is imported before a command needs it."""

import typing as tp
from pathlib import Path

import typer

from ..errors import LuminaError
from .options import Checkpoint, Device, Model, Quiet, Store

if tp.TYPE_CHECKING:
    from ..provenance import Signing
    from ..report.summary import Summary
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
    model: Model = None, store: Store = None, checkpoint: Checkpoint = None, device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Generate music with attributions attached: audio with tags, a sidecar and a report (JSON, HTML, CSV) per clip.

    A clip that is there already, whole and of the same request, is kept: a run that was stopped goes on by the same
    command.
    """
    signing = _signing(certificate, key)
    from ..generation import Request, generate_clips, prompt_of
    from ..workflows import Studio, quickstart_run
    studio = Studio(model or quickstart_run(), store, device=device, checkpoint=checkpoint)
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


def attribute(
    file: tp.Annotated[Path, typer.Argument(
        metavar='FILE|FOLDER', help="Recording of any format that soundfile or ffmpeg's libraries read, or a folder of "
                                    "them.")],
    out: tp.Annotated[tp.Optional[Path], typer.Option(
        '--out', '-o', help="Write report.json, report.html and report.csv into this folder; of a folder, those of "
                            "each recording, and summary.html, .json and .csv.")] = None,
    sidecar: tp.Annotated[bool, typer.Option(
        '--sidecar', help="Write who is credited beside the recording, as FILE.lumina.json; `lumina show` reads "
                          "it.")] = False,
    top: tp.Annotated[int, typer.Option(min=1, help="Songs to print per channel.")] = 5,
    json_: tp.Annotated[bool, typer.Option('--json', help="Print the whole report, or summary, as JSON.")] = False,
    jobs: tp.Annotated[int, typer.Option(
        '--jobs', '-j', min=1, help="Of a folder: processes, each with a model of its own.")] = 1,
    by: tp.Annotated[str, typer.Option(
        help="Of a folder: what counts the same in the summary, recordings or seconds.")] = 'recordings',
    model: Model = None, store: Store = None, checkpoint: Checkpoint = None, device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Attribute a recording to the songs of a store; or all recordings of a folder, with a summary of who is owed what.

    Of a folder, what is finished is kept: a run that was stopped goes on by the same command, and files that cannot be
    attributed are named with the reason. A generation with its report beside it keeps that report.
    """
    from ..workflows import quickstart_run
    if file.is_dir():
        if out is None or sidecar:
            raise LuminaError("A folder's reports need --out FOLDER to be written to, and have no sidecars.")
        if by not in ('recordings', 'seconds'):
            raise LuminaError(f"--by is recordings or seconds, not {by}.")
        from ..batch import attribute_folder
        batch = attribute_folder(file, out, model or quickstart_run(), store, device, jobs, tp.cast(tp.Any, by),
                                 progress=not quiet, checkpoint=checkpoint)
        print(batch.summary.model_dump_json(indent=2) if json_ else _summed(batch.summary, top))
        if not json_ and not quiet:
            print(f'\n{len(batch.summary.recordings)} recordings, {batch.reused} of them attributed before; '
                  f'{len(batch.summary.left_out)} left out\nWritten: {batch.page}')
        return
    _attribute_file(file, out, sidecar, top, json_, model, store, device, checkpoint)


def _attribute_file(file: Path, out: tp.Optional[Path], sidecar: bool, top: int, json_: bool,
                    model: tp.Optional[str], store: tp.Optional[Path], device: tp.Optional[str],
                    checkpoint: tp.Optional[str]) -> None:
    from ..audio import read_audio
    from ..provenance import attribution_of, content_sha256
    from ..report.render import render_table
    from ..workflows import Studio, quickstart_run
    read_audio(file)  # a bad file is told before a model is loaded
    studio = Studio(model or quickstart_run(), store, device=device, checkpoint=checkpoint)
    report = studio.attribute(file, out)
    if sidecar:
        attribution_of(report, content_sha256(file)).save_beside(file)
    if not json_:
        print(f'{file} by {report.model.id} against {studio.store.path}, {report.store.songs} songs\n')
    print(report.model_dump_json(indent=2) if json_ else render_table(report, top=top))
    if out is not None and not json_:
        print(f'\nWritten: {out}/report.html, report.json and report.csv')


def _summed(summary: 'Summary', top: int) -> str:
    """Who is owed most in each channel, and what is left."""
    from ..report import words
    lines = []
    for one in summary.left_out:
        lines.append(f'left out: {words.clean(one.file, 200)}: {words.clean(one.reason, 300)}')
    for warned in summary.warnings:
        lines.append(f'Warning: {words.clean(warned.text, 1000)} ({words.recording_count(warned.recordings)})')
    for key, channel in summary.channels.items():
        lines += ['', f'{key}  {words.channel_words(key).name}']
        rows = [(song.share, song.share_low, song.share_high, f'{words.clean(song.title)}' + (
            f' by {words.clean(song.artist)}' if song.artist else '') + f' ({words.recording_count(song.recordings)})')
            for song in channel.owed[:top]]
        rest = channel.owed[top:]
        if rest:
            rows.append((sum(song.share for song in rest), None, None, words.song_count(len(rest), True)))
        rows.append((channel.unattributed, channel.unattributed_low, channel.unattributed_high, 'unattributed'))
        lines += [f'  {words.percent(share):>8}  {words.span(low, high):<17}  {text}'
                  for share, low, high, text in rows]
    return '\n'.join(lines).replace(words.NBSP, ' ')
