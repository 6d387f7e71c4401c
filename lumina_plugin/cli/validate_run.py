"""`lumina validate`: the commands that measure runs and their stores."""

import typing as tp
from pathlib import Path

import typer

from .validate import OUT, validate_app

if tp.TYPE_CHECKING:
    from ..validation.opened import Continued

_Out = tp.Annotated[Path, typer.Option('--out', '-o', help="Folder for everything that is made.")]
_Models = tp.Annotated[tp.Optional[tp.List[str]], typer.Option(
    '--model', '-m', help="Folder or signature of a dora run with fingerprints; may be repeated. Those of the suite "
                          "that are finished below --out unless said; if there is none, it is trained first.")]
_Seconds = tp.Annotated[float, typer.Option(min=0.1, help="Length of a prompt; a query has 10 s with it.")]
_Temperature = tp.Annotated[float, typer.Option(min=0.01, help="Of the continuations.")]
_Text = tp.Annotated[bool, typer.Option('--with-text/--no-text', help="Continue a song under its own description.")]
_Count = tp.Annotated[tp.Optional[int], typer.Option(min=1, help="Continue so many songs, spread over the catalogue; "
                                                                 "all of them unless said.")]
_Device = tp.Annotated[tp.Optional[str], typer.Option(help="cpu or cuda; cuda where there is one unless said.")]


def _prompt(seconds: float, temperature: float, with_text: bool, count: tp.Optional[int]) -> 'Continued':
    from ..validation.opened import Continued
    from ..validation.queries import Sampling
    return Continued(seconds, with_text, count, Sampling(temperature=temperature))


def _done(text: str, folder: Path) -> None:
    print(text)
    print(f'Written: {folder}/{folder.name}.md, {folder.name}.json, {folder.name}.png')


@validate_app.command('causal')
def causal(out: _Out = OUT, model: _Models = None, seconds: _Seconds = 3., temperature: _Temperature = 0.6,
           with_text: _Text = True, count: _Count = None, device: _Device = None) -> None:
    """Is the song that a continuation goes on from the one that is found? By every store of a run, and by codes alone.

    Without --model, the suite's model that knows its songs by heart is trained first if need be. Writes causal.md,
    causal.json and causal.png. Called again it goes on where it was stopped.
    """
    from ..validation import causal as module
    from ..validation.opened import open_stored
    prompt = _prompt(seconds, temperature, with_text, count)
    rows = [row for opened in open_stored(model or [], out, device, by_heart=True)
            for row in module.measure(opened, prompt)]
    _done(module.markdown(rows, prompt), module.save_causal(out, rows, prompt))


@validate_app.command('self')
def own(out: _Out = OUT, model: _Models = None,
        count: tp.Annotated[tp.Optional[int], typer.Option(
            min=1, help="Ask so many songs, spread over the catalogue; all of them unless said.")] = None,
        device: _Device = None) -> None:
    """Does a song that the model was trained on find itself? By every store of a run.

    Writes self.md, self.json and self.png. Called again it goes on where it was stopped.
    """
    from ..validation import own as module
    from ..validation.opened import open_stored
    rows = [row for opened in open_stored(model or [], out, device)
            for row in module.measure(opened, count)]
    _done(module.markdown(rows), module.save_self(out, rows))


@validate_app.command('leave-out')
def leave_out(
    out: _Out = OUT,
    model: tp.Annotated[tp.Optional[str], typer.Option(
        '--model', '-m', help="The run whose ground truth was made; the standard suite's unless said.")] = None,
    truth: tp.Annotated[tp.Optional[Path], typer.Option(
        help="A ground truth of another folder, e.g. one that is kept beside the code.")] = None,
    baselines: tp.Annotated[str, typer.Option(
        help="What else to score, parted by commas: clap=FOLDER (or a hub name), clews=FOLDER; lpips and rps need "
             "nothing and are always there.")] = '',
    device: _Device = None,
) -> None:
    """Who loses most when an artist's or a composition's songs are left out of training, and do the scores foretell it?

    Writes leave-out.md, leave-out.json and leave-out.png. Called again it goes on where it was stopped.
    """
    from ..baselines.choose import baselines as other_methods
    from ..validation import leave_out_result as module
    from ..validation.black_boxes import CodeHistogram
    from ..validation.methods import Fingerprints, Method
    from ..validation.opened import kept_scores, open_truth
    found, opened = open_truth(out, model, truth, device)
    songs = [found.queries[column] for column in found.columns('songs')]
    methods: tp.List[Method] = [Fingerprints(opened.musicgen, store.path, found.songs) for store in opened.stores]
    methods += other_methods(baselines, opened.musicgen.lm, opened.musicgen.compression_model, songs, device)
    methods.append(CodeHistogram(songs, opened.musicgen.lm.card))
    result = module.measure(found, methods, lambda method, queries, masked: kept_scores(
        method, queries, masked, opened))
    _done(module.markdown(result), module.save_leave_out(out, result, found.facts))


@validate_app.command('repro')
def repro(out: _Out = OUT, model: _Models = None, device: _Device = None,
          songs: tp.Annotated[int, typer.Option(min=1, help="Songs that are fingerprinted.")] = 8,
          repeats: tp.Annotated[int, typer.Option(min=1, help="Times that nothing is changed.")] = 20) -> None:
    """How far does a fingerprint move with repeats, batch sizes, threads and half precision? For every store of a run.

    Writes repro.md, repro.json and repro.png. Called again it goes on where it was stopped.
    """
    from ..models import default_device
    from ..validation import repro as module
    from ..validation.opened import open_stored
    rows = [row for opened in open_stored(model or [], out, device) for row in module.measure(opened, songs, repeats)]
    where = device or default_device()
    _done(module.markdown(rows, where), module.save_repro(out, rows, where))


@validate_app.command('false-payments')
def false_payments(
    out: _Out = OUT, model: _Models = None,
    strangers: tp.Annotated[tp.Optional[Path], typer.Option(
        help="Manifest of recordings that owe nobody; the suite's unless said.")] = None,
    other: tp.Annotated[tp.Optional[tp.List[str]], typer.Option(
        help="A dora run that was trained on other songs, whose generations owe nobody; may be repeated. The suite's "
             "two unless said, one of which is trained first.")] = None,
    each: tp.Annotated[int, typer.Option(min=1, help="Free generations of --other, and as many continuations.")] = 32,
    seconds: _Seconds = 3., temperature: _Temperature = 0.6, with_text: _Text = True, count: _Count = None,
    device: _Device = None,
) -> None:
    """How often is somebody paid for music that owes nobody, and how often is the source of a continuation paid?

    By every store and gate. Writes false-payments.md, false-payments.json and false-payments.png. Called again it goes
    on where it was stopped.
    """
    from ..validation import false_payments as module
    from ..validation import false_payments_result as result
    from ..validation.opened import open_others, open_stored, suite_strangers
    manifest, prompt = strangers or suite_strangers(out), _prompt(seconds, temperature, with_text, count)
    models = open_others(other or [], out, each, device)
    rows: tp.List[module.Paid] = []
    refused: tp.List[str] = []
    for opened in open_stored(model or [], out, device):
        queries, files = module.strangers_of(opened, manifest)
        families = {module.RECORDINGS: queries}
        for source in models:
            families[f'generations, {source.title}'] = module.others_of(opened, source, each, seconds)
        found, why = module.measure(opened, families, opened.continued(prompt), files)
        rows, refused = rows + found, refused + why
    _done(result.markdown(rows, refused), result.save_false_payments(out, rows, refused))
