"""`lumina unlearn draws`: how many draws of noise a diffusion's losses need."""

import typing as tp
from pathlib import Path

import typer

from .unlearn import OUT, Device, Model, Out, RecipeName, Settings, recipe_of


def register(app: typer.Typer) -> None:
    """Make it a command of a group."""
    app.command('draws')(draws)


def draws(
    model: Model, out: Out = OUT, recipe: RecipeName = 'default', settings: Settings = None,
    first: tp.Annotated[int, typer.Option('--from', min=1, help="The smallest number of draws.")] = 16,
    last: tp.Annotated[int, typer.Option('--to', min=2, help="The largest, which is compared with half of it.")] = 256,
    queries: tp.Annotated[int, typer.Option(min=1, help="Free generations that are unlearnt.")] = 8,
    truth: tp.Annotated[tp.Optional[Path], typer.Option(
        help="A ground truth of the diffusion: its generations are asked about, and each number is judged.")] = None,
    among: tp.Annotated[tp.Optional[int], typer.Option(
        help="With more than the smallest number ask only about so many songs, those that came highest: cheaper, and "
             "enough to see the first ten settle.")] = None,
    device: Device = None,
) -> None:
    """How many draws of timestep and noise does a diffusion's loss need, so that twice as many move no top 10?

    Writes draws.md, draws.json and draws.png. Called again it goes on where it was stopped.
    """
    from ..unlearning import draws as module
    from ..unlearning.opened import free_pieces
    subject, pieces, halves = free_pieces(model, queries, truth, device)
    found = module.measure(subject, recipe_of(recipe, settings), pieces, out, first, last, halves,
                           among)
    folder = module.save_draws(out, found)
    print(module.markdown(found))
    print(f'Written: {folder}/draws.md, draws.json, draws.png')
