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
Out = tp.Annotated[Path, typer.Option('--out', '-o', help="Folder for everything that is made.")]
RecipeName = tp.Annotated[str, typer.Option('--recipe', help="published or default.")]
Settings = tp.Annotated[tp.Optional[tp.List[str]], typer.Option(
    '--set', help="A key of the recipe, e.g. fisher=diagonal, layers=M, mask=both, steps=4, relative=0.003 or lr=1e-6; "
                  "may be repeated.")]
Device = tp.Annotated[tp.Optional[str], typer.Option(help="cpu or cuda; cuda where there is one unless said.")]
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
    found = yaml.safe_load(value)
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
    linear: tp.Annotated[bool, typer.Option('--linear', help="Also the linearisation of every point.")] = False,
    suite: Suite = Path('outputs/validation'), truth: Truth = None, device: Device = None,
) -> None:
    """Which step, Fisher information, layers and mask foretell retraining? By the suite's ground truth.

    Writes grid.md, grid.json and grid.png. Called again it goes on where it was stopped. The same as a dora grid:
    `dora grid lumina.unlearning`.
    """
    from ..errors import LuminaError
    from ..unlearning import grid as module
    from ..validation.opened import open_truth
    families = list(family or ['free'])
    unknown = [one for one in families if one not in module.FAMILIES]
    if unknown:
        raise LuminaError(f"There are no queries '{unknown[0]}'; choose of {', '.join(module.FAMILIES)}.")
    axes = {key: values for key, values in map(_axis, axis or module.AXES)}
    fixed = dict(map(_setting, settings or []))
    recipes = module.points_of(recipe, {**{key: [value] for key, value in fixed.items()}, **axes})
    found, opened = open_truth(suite, None, truth, device)
    points = module.grid(recipes, opened.musicgen, opened.run, found, out, families, linear)
    folder = module.save_grid(out, points, families)
    print(module.markdown(points, families))
    print(f'Written: {folder}/grid.md, grid.json, grid.png')


def _axis(text: str) -> tp.Tuple[str, tp.List[tp.Any]]:
    key, _, values = text.partition('=')
    return key.strip(), [_setting(f'{key}={value}')[1] for value in values.split(',')]
