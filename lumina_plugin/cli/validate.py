"""`lumina validate`: attribution measured against the truth."""

import typing as tp
from pathlib import Path

import typer

validate_app = typer.Typer(no_args_is_help=True, help="""
Measure attributions against the truth: retrain without songs and see what changes.

Start with `lumina validate ground-truth`. Everything is written below one folder, and every command goes on from what
is there.
""")

_Out = tp.Annotated[Path, typer.Option('--out', '-o', help="Folder for everything that is made.")]
OUT = Path('outputs/validation')


@validate_app.command('ground-truth')
def ground_truth(
    out: _Out = OUT,
    model: tp.Annotated[tp.Optional[str], typer.Option(
        '--model', '-m', help="Folder or signature of a dora run of your own; the standard suite unless said.")] = None,
    heldout: tp.Annotated[tp.Optional[Path], typer.Option(
        help="Manifest of songs that your run never saw.")] = None,
    jobs: tp.Annotated[int, typer.Option(min=1, help="Models that are trained at once.")] = 2,
    part: tp.Annotated[str, typer.Option(
        help="K/N: train every N-th model from the K-th on (from 0), and leave the others to other machines.")] = '0/1',
    halves: tp.Annotated[int, typer.Option(min=2, help="Models of random halves of the songs.")] = 48,
    seeds: tp.Annotated[int, typer.Option(min=1, help="Models of each half, whose losses are averaged.")] = 3,
) -> None:
    """Retrain the model on random halves of its songs, and without whole groups: what truly shaped its music.

    The standard suite takes about an hour on two cores. It can be stopped at any time and goes on from there.
    """
    from ..catalogue_pass import run_songs
    from ..errors import LuminaError
    from ..models import run_folder
    from ..validation.ground_truth import make_ground_truth
    from ..validation.plan import plan_models
    share = part.split('/')
    if len(share) != 2 or not all(one.isdigit() for one in share) or not int(share[0]) < int(share[1]):
        raise LuminaError(f"--part is {part}, which is not K/N with K below N; say 0/4 to 3/4 on four machines.")
    if model is None:
        from ..validation.suite import build_songs, standard_run
        songs = build_songs(out.absolute())
        run, _ = standard_run(out.absolute(), songs)
        heldout = heldout or songs / 'egs' / 'heldout'
    else:
        folder = run_folder(model)
        if folder is None:
            raise LuminaError(f"{model} is no dora run: a ground truth needs one, whose training can be repeated.")
        if heldout is None:
            raise LuminaError("Name songs that the run never saw by --heldout; some of the queries are of them.")
        run = folder
    plan = plan_models(run_songs(run), halves=halves, seeds=seeds)
    truth = make_ground_truth(run, heldout, out / 'truth', jobs, (int(share[0]), int(share[1])), plan)
    if truth is not None:
        print(f"{len(truth.models)} models, {len(truth.queries)} queries: {out}/truth/ground_truth.safetensors")
