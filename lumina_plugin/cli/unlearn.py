"""`lumina unlearn`: attribution by forgetting what was generated (arXiv 2506.18312)."""

import typing as tp
from pathlib import Path

import typer

if tp.TYPE_CHECKING:
    from ..unlearning.recipe import UnlearningRecipe

unlearn_app = typer.Typer(no_args_is_help=True, help="""
Attribute by unlearning: forget a piece of music, and see which training songs the model gets worse at.

`lumina unlearn fisher MODEL` once, then `lumina unlearn attribute FILE`. Recipes: `published` (one step of lr 1e-6 with
the diagonal Fisher information) and `default` (what the ground truth found best); any key of them can be set.
""")

OUT = Path('outputs/unlearning')
Model = tp.Annotated[str, typer.Argument(help="Folder or signature of a dora run.")]
_Model = tp.Annotated[tp.Optional[str], typer.Option(
    '--model', '-m', help="Folder or signature of a dora run; the quickstart's unless said.")]
Out = tp.Annotated[Path, typer.Option('--out', '-o', help="Folder for everything that is made.")]
RecipeName = tp.Annotated[str, typer.Option('--recipe', help="published or default.")]
Settings = tp.Annotated[tp.Optional[tp.List[str]], typer.Option(
    '--set', help="A key of the recipe, e.g. fisher=diagonal, layers=M, mask=both, steps=4, relative=0.003 or lr=1e-6; "
                  "may be repeated.")]
Device = tp.Annotated[tp.Optional[str], typer.Option(help="cpu or cuda; cuda where there is one unless said.")]
Checkpoint = tp.Annotated[tp.Optional[str], typer.Option(
    help="One whose weights fingerprinting kept, e.g. epoch-0004; the last unless said.")]
Moved = tp.Annotated[int, typer.Option(min=1, help="After how many forgotten pieces those are generated.")]
Embedding = tp.Annotated[str, typer.Option(help="What listens to generations: auto, openl3, clap or codec.")]
Clap = tp.Annotated[tp.Optional[str], typer.Option(help="Folder or hub name of a CLAP.")]
Catalogue = tp.Annotated[tp.Optional[Path], typer.Option(
    '--catalogue', '-c', help="Manifest of the songs that the model was trained on, or its folder; a run's own unless "
                              "said. With it the model may also be an exported folder or a hub's name, and what is "
                              "made once for that is kept in kept-model/ of --out.")]
Suite = tp.Annotated[Path, typer.Option(help="Folder of `lumina validate`, whose ground truth judges.")]
Truth = tp.Annotated[tp.Optional[Path], typer.Option(help="A ground truth of another folder.")]


def recipe_of(name: str, settings: tp.Optional[tp.Sequence[str]]) -> 'UnlearningRecipe':
    """A preset with `KEY=VALUE` settings."""
    from ..unlearning.recipe import unlearning_recipe
    return unlearning_recipe(name, **{key: value for key, value in map(_setting, settings or [])})


def _setting(text: str) -> tp.Tuple[str, tp.Any]:
    import yaml

    from ..errors import LuminaError
    key, equals, value = text.partition('=')
    if not equals or not key.strip():
        raise LuminaError(f"'{text}' is not KEY=VALUE, such as relative=0.003; correct it.")
    try:
        found = yaml.safe_load(value)
    except yaml.YAMLError:
        found = value
    try:  # YAML reads 1e-6 as text
        return key.strip(), float(found) if isinstance(found, str) else found
    except ValueError:
        return key.strip(), found


@unlearn_app.command('grid')
def grid(
    out: Out = OUT, recipe: RecipeName = 'default', settings: Settings = None,
    axis: tp.Annotated[tp.Optional[tp.List[str]], typer.Option(
        help="A key with its values, e.g. relative=0.001,0.003,0.01; may be repeated: every combination is measured. "
             "Steps of different lengths, layers and masks unless said.")] = None,
    family: tp.Annotated[tp.Optional[tp.List[str]], typer.Option(
        help="Queries: free, continued, heldout; may be repeated. The first of them chooses.")] = None,
    model: tp.Annotated[tp.Optional[str], typer.Option(
        '--model', '-m', help="The run whose ground truth was made; the standard suite's unless said.")] = None,
    linear: tp.Annotated[bool, typer.Option('--linear', help="Also the linearisation of every point.")] = False,
    generations: tp.Annotated[int, typer.Option(
        min=0, help="Also the Fréchet distance of so many generations to the songs, after forgetting some queries; 0 "
                    "leaves it out.")] = 0,
    moved: Moved = 3, embedding: Embedding = 'auto', clap: Clap = None,
    suite: Suite = Path('outputs/validation'), truth: Truth = None, device: Device = None,
) -> None:
    """Which step, Fisher information, layers and mask foretell retraining? By the suite's ground truth.

    The truth is of the run's last checkpoint, so that no earlier one is measured. Writes grid.md, grid.json and
    grid.png. Called again it goes on where it was stopped. The same as a dora grid: `dora grid lumina.unlearning`.
    """
    from ..errors import LuminaError
    from ..unlearning import grid as module
    from ..unlearning.drift import Drift
    from ..unlearning.embeddings import embedder
    from ..unlearning.opened import open_bench
    families = list(family or ['free'])
    unknown = [one for one in families if one not in module.FAMILIES]
    if unknown:
        raise LuminaError(f"There are no queries '{unknown[0]}'; choose of {', '.join(module.FAMILIES)}.")
    fixed = dict(map(_setting, settings or []))
    size = {'lr', 'relative'} & set(fixed)
    axes = {key: values for key, values in map(_axis, axis or module.AXES)
            if axis or key not in fixed and not (size and key == 'relative')}
    recipes = module.points_of(recipe, {**{key: [value] for key, value in fixed.items()}, **axes})
    bench = open_bench(truth, model, suite, device)
    drift, before = None, []
    if generations:
        drift = Drift(bench.subject, embedder(bench.subject.sound, embedding, clap), out, generations, moved)
        before = drift.before()
    points = module.grid(recipes, bench, out, families, linear, drift)
    folder = module.save_grid(out, points, families, before)
    print(module.markdown(points, families, before))
    print(f'Written: {folder}/grid.md, grid.json, grid.png')


def _axis(text: str) -> tp.Tuple[str, tp.List[tp.Any]]:
    key, _, values = text.partition('=')
    return key.strip(), [_setting(f'{key}={value}')[1] for value in values.split(',')]


@unlearn_app.command('fisher')
def fisher(
    model: Model, out: Out = OUT, recipe: RecipeName = 'default', settings: Settings = None,
    checkpoint: Checkpoint = None, catalogue: Catalogue = None,
    device: Device = None,
) -> None:
    """Go over the songs once: which weights they hold on to, and how well the model knows each of them.

    Both are kept beside the checkpoint, in `fisher/` of the run's folder; every other command uses them. Those of a
    model that is no run are kept below --out, and the other commands find them by the same --out. Writes fisher.md,
    fisher.json and fisher.png. Called again it goes on where it was stopped.
    """
    import time

    from ..prepared import progress_bar
    from ..unlearning import fisher_report as module
    from ..unlearning.kept import path_of
    from ..unlearning.opened import open_subject
    subject = open_subject(model, device, checkpoint, catalogue, out)
    chosen = subject.adapted(recipe_of(recipe, settings))
    begun = time.perf_counter()
    found = subject.unlearner(chosen, progress_bar)
    seconds = time.perf_counter() - begun
    numbers = sum(tensor.numel() for tensor in found.fisher.tensors().values())
    print(f'{chosen.fisher} Fisher information of {len(subject.songs)} songs for {chosen.layers}: {numbers:,} numbers, '
          f'mean {found.fisher.mean:.3g}, in {seconds:.1f} s')
    if chosen.fisher == 'identity':
        return  # which holds nothing: there is nothing to tell of it
    kept = path_of(subject.folder, subject.facts(chosen))
    told = module.report(found.fisher, found.learner.blocks, chosen, subject.folder.name, len(subject.songs), str(kept))
    folder = module.save_report(out, told)
    print(f'Kept: {kept}\n\n{module.summary(told)}')
    print(f'Written: {folder}/fisher.md, fisher.json, fisher.png')


@unlearn_app.command('attribute')
def attribute(
    files: tp.Annotated[tp.List[Path], typer.Argument(
        metavar='FILE...', help="Recordings or generated clips, or folders of them.")],
    out: Out = OUT, model: _Model = None, recipe: RecipeName = 'default', settings: Settings = None,
    text: tp.Annotated[tp.Optional[str], typer.Option(
        '--prompt', '--text', help="Text that they were generated with.")] = None,
    fast: tp.Annotated[bool, typer.Option(
        '--fast', help="Ask only about the songs that the step's first order and fingerprints put highest.")] = False,
    part: tp.Annotated[float, typer.Option(min=0., max=1., help="How many of the songs, with --fast.")] = 0.05,
    store: tp.Annotated[tp.Optional[Path], typer.Option(
        '--store', '-s', help="Fingerprints for --fast; those beside the run's checkpoints unless said.")] = None,
    fisher: tp.Annotated[tp.Optional[Path], typer.Option(
        help="A file of Fisher information; the run's own unless said.")] = None,
    checkpoint: Checkpoint = None, catalogue: Catalogue = None,
    device: Device = None,
) -> None:
    """Forget each recording, and see which training songs the model gets worse at.

    Each gets a folder with a table, a picture, JSON and CSV. Called again it goes on where it was stopped.
    """
    from ..audio import read_audio
    from ..unlearning import attribute as module
    from ..unlearning.opened import open_subject
    from ..workflows import quickstart_run
    chosen, recordings = recipe_of(recipe, settings), recordings_of(files)
    for file in recordings:
        read_audio(file)  # a bad file is told before a model is loaded
    subject = open_subject(model or str(quickstart_run()), device, checkpoint, catalogue, out)
    pieces = subject.pieces(recordings, text)
    attributor = _attributor(subject, store) if fast else None
    for answer in module.attribute(subject, subject.adapted(chosen), pieces, out, attributor, fisher, part, fast):
        folder = module.save_answer(out, answer)
        print(module.markdown(answer))
        print(f'Written: {folder}/{answer.query}.md, .json, .png, .csv\n')


def recordings_of(paths: tp.Sequence[Path]) -> tp.List[Path]:
    """Files, and the recordings of folders."""
    from ..catalogue.build import find_recordings
    return [file for path in paths for file in (find_recordings(path) if path.is_dir() else [path])]


def _attributor(subject: tp.Any, store: tp.Optional[Path]) -> tp.Any:
    """What compares fingerprints; None where there are none, which --fast can do without."""
    from ..models import run_stores
    from ..store import FingerprintStore
    found = store or next(iter(run_stores(subject.folder)), None)
    return None if found is None else subject.attributor(FingerprintStore.open(found))


@unlearn_app.command('self')
def own(
    model: Model, out: Out = OUT, recipe: RecipeName = 'default', settings: Settings = None,
    layers: tp.Annotated[tp.Optional[tp.List[str]], typer.Option(
        help="Layer group; may be repeated. All that the model has unless said.")] = None,
    mask: tp.Annotated[tp.Optional[tp.List[str]], typer.Option(
        help="none, both or mixed; may be repeated. All three unless said.")] = None,
    targets: tp.Annotated[int, typer.Option(min=1, help="Songs that are forgotten, picked by k-means.")] = 40,
    generations: tp.Annotated[int, typer.Option(
        min=0, help="Clips per Fréchet distance; 0 leaves it out.")] = 32,
    moved: Moved = 3, embedding: Embedding = 'auto', clap: Clap = None,
    checkpoint: Checkpoint = None, catalogue: Catalogue = None,
    device: Device = None,
) -> None:
    """Forget training songs one at a time: does the model lose the song itself first, and what else?

    Per layer group and mask. Writes self.md, self.json and self.png. Called again it goes on where it was stopped.
    """
    from ..unlearning import own as module
    from ..unlearning.embeddings import embedder
    from ..unlearning.opened import open_subject
    from ..unlearning.recipe import unlearning_recipe
    from ..unlearning.subject import LAYERS
    subject = open_subject(model, device, checkpoint, catalogue, out)
    groups = layers or [one for one in LAYERS if subject.has_layers(one)]
    fixed = dict(map(_setting, settings or []))
    recipes = [subject.adapted(unlearning_recipe(recipe, **{**fixed, 'layers': group, 'mask': one}))
               for group in groups for one in (mask or ['mixed', 'both', 'none'])]
    found = module.measure(subject, recipes, embedder(subject.sound, embedding, clap), out, targets, generations, moved)
    folder = module.save_own(out, found)
    print(module.markdown(found))
    print(f'Written: {folder}/self.md, self.json, self.png')
