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

    It can be stopped at any time and goes on from there. Of several parts, start 0/N first: it makes what all share.
    """
    from ..catalogue_pass import run_songs
    from ..errors import LuminaError
    from ..models import run_folder
    from ..validation.ground_truth import QUERIES, make_ground_truth
    from ..validation.plan import plan_models
    share = part.split('/')
    if len(share) != 2 or not all(one.isdigit() for one in share) or not int(share[0]) < int(share[1]):
        raise LuminaError(f"--part is {part}, which is not K/N with K below N; say 0/4 to 3/4 on four machines.")
    if int(share[0]) > 0 and not (out / 'truth' / QUERIES).is_file():
        raise LuminaError(f"{out} has no queries yet, which all parts share: start --part 0/{share[1]} first, and the "
                          "others once it is retraining.")
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
        from ..validation import summary
        found = summary.summarise(truth)
        folder = summary.save(out, truth, found)
        print(summary.markdown(found))
        print(f"Written: {out}/truth/ground_truth.safetensors, {folder}/ground-truth.md, ground-truth.json, "
              "ground-truth.png")


@validate_app.command('lds')
def lds(
    out: _Out = OUT,
    model: tp.Annotated[tp.Optional[str], typer.Option(
        '--model', '-m', help="The run whose ground truth was made; the standard suite's unless said.")] = None,
    truth: tp.Annotated[tp.Optional[Path], typer.Option(
        help="A ground truth of another folder, e.g. one that is kept beside the code.")] = None,
    score: tp.Annotated[tp.Optional[tp.List[str]], typer.Option(
        help="Also score every store by this: cosine, kernel or dot; may be repeated.")] = None,
    peers: tp.Annotated[bool, typer.Option(
        '--peers', help="Also TRAK, LoGra and EK-FAC by dattri and kronfluence, the extra `peers`.")] = False,
    baselines: tp.Annotated[str, typer.Option(
        help="What else to score, parted by commas: clap=FOLDER (or a hub name), clews=FOLDER; lpips and rps need "
             "nothing and are always there.")] = '',
) -> None:
    """Do the scores foretell what retraining did? Every store beside the run's checkpoints, unlearning, TracIn and
    baselines.

    Writes lds.md, lds.json and lds.png. Make stores to compare with `lumina fingerprint RUN --recipe … --set …`.
    """
    from tqdm import tqdm

    from ..baselines.choose import baselines as other_methods
    from ..baselines.choose import parse
    from ..catalogue_pass import run_songs
    from ..errors import LuminaError
    from ..models import load_musicgen, run_folder, run_stores
    from ..unlearning.method import unlearning_methods
    from ..validation import black_boxes
    from ..validation import methods as known
    from ..validation.judge import judge
    from ..validation.peers import peer_methods
    from ..validation.tracin import TracIn, run_checkpoints
    from ..validation.truth import GroundTruth
    parse(baselines)  # before anything is loaded
    found = GroundTruth.load(truth or out / 'truth' / 'ground_truth.safetensors')
    run = run_folder(model if model is not None else out / 'xps' / found.facts['run'])
    if run is None:
        raise LuminaError(f"The run {model or found.facts['run']} of this ground truth is not below {out}; make it "
                          "with `lumina validate ground-truth`, or name it by --model.")
    catalogue, musicgen = run_songs(run), load_musicgen(run)
    if catalogue.hash != found.facts['catalogue']:
        raise LuminaError(f"Run {run.name} was trained on other songs than those of the ground truth; name the run "
                          "that it was made of by --model.")
    songs = [found.queries[column] for column in found.columns('songs')]
    chosen: tp.List[known.Method] = []
    ways: tp.List[tp.Optional[str]] = [None, *(score or [])]
    for store in run_stores(run):
        chosen += [known.Fingerprints(musicgen, store, found.songs, way, songs) for way in ways]
    checkpoints = run_checkpoints(run, musicgen.lm)
    chosen += peer_methods(musicgen.lm, checkpoints, songs) if peers else []
    seconds = {track.id: track.duration for track in catalogue}
    chosen += [TracIn(musicgen.lm, checkpoints, songs), *unlearning_methods(musicgen, run, songs),
               *other_methods(baselines, musicgen.lm, musicgen.compression_model, songs),
               black_boxes.CodeHistogram(songs, musicgen.lm.card),
               black_boxes.MelStatistics(songs, musicgen.compression_model),
               black_boxes.PlayingTime(found.songs, [seconds[song] for song in found.songs]),
               black_boxes.Random(found.songs)]
    table = judge(found, chosen, lambda items: tqdm(items, desc='scoring', unit='method', dynamic_ncols=True))
    table.save(out / 'lds')
    print(table.markdown())
    print(f"Written: {out / 'lds'}/lds.md, lds.json, lds.png")


@validate_app.command('diagnose')
def diagnose_reports(
    reports: tp.Annotated[tp.List[Path], typer.Argument(
        help="report.json files of one store and recipe, or folders that hold them: the more queries, the better.")],
    out: _Out = OUT / 'diagnose',
) -> None:
    """Do the scores tell queries apart? Of reports of your own; needs neither a model nor a truth.

    Writes diagnose.md, diagnose.json and diagnose.png.
    """
    from ..reliability import diagnose
    from ..validation import diagnose as module
    scores = module.scores_of(reports)
    found = {channel: diagnose(one.scores, one.songs, one.shares) for channel, one in scores.items()}
    module.save(out, scores, found)
    print(module.markdown(found))
    print(f'Written: {out}/diagnose.md, diagnose.json, diagnose.png')
