"""`lumina unlearn compare`: methods against each other on the same generations."""

import typing as tp
from pathlib import Path

import typer

from .options import Device
from .validate import OUT


def register(app: typer.Typer) -> None:
    """Make it a command of a group."""
    app.command('compare')(compare)


def compare(
    out: tp.Annotated[Path, typer.Option('--out', '-o', help="Folder of the suite, and for what is made.")] = OUT,
    model: tp.Annotated[tp.Optional[str], typer.Option(
        '--model', '-m', help="Folder or signature of a dora run, a MusicGen's or a diffusion's; the standard suite's "
                            "unless said.")] = None,
    truth: tp.Annotated[tp.Optional[Path], typer.Option(
        help="A ground truth of the run in another folder, e.g. one that is kept beside the code.")] = None,
    family: tp.Annotated[str, typer.Option(
        help="Queries: free, continued (MusicGen) or heldout, of the ground truth; free alone where there is "
             "none.")] = 'free',
    count: tp.Annotated[int, typer.Option(min=2, help="Free generations, where there is no ground truth.")] = 16,
    whole: tp.Annotated[bool, typer.Option('--whole', help="Count the prompts of continuations, too.")] = False,
    baselines: tp.Annotated[str, typer.Option(
        help="What else to compare with, parted by commas: clap=FOLDER (or a hub name), clews=FOLDER; lpips and rps "
             "need nothing and are always there.")] = '',
    channel: tp.Annotated[str, typer.Option(help="Of methods that have several: 'P + M', P or M.")] = 'P + M',
    draws: tp.Annotated[tp.Optional[int], typer.Option(
        min=1, help="Diffusion: fixed pairs of timestep and noise that everything but fingerprints is asked at; 32 "
                    "unless said. The cost grows with them.")] = None,
    top: tp.Annotated[int, typer.Option(min=1, help="Songs that count in the overlap.")] = 10,
    device: Device = None,
) -> None:
    """Do methods say the same of the same generations, and which of them foretells what retraining does?

    Correlations and overlaps of every method with every other, and how few songs hold most of the scores. Writes
    compare.md, compare.json, compare.png and concentration.png. Called again it goes on where it was stopped.
    """
    from ..errors import LuminaError
    from ..unlearning import compare as module
    from ..unlearning import compare_result as result
    if channel not in module.CHANNELS:
        raise LuminaError(f"There is no channel '{channel}'; --channel takes {', '.join(module.CHANNELS)}.")
    families = ('free', 'continued', 'heldout')
    if family not in families:
        raise LuminaError(f"There is no family of queries '{family}'; --family takes {', '.join(families)}.")
    setting = module.open_setting(module.Asked(out, model, truth, baselines, device, draws), family, whole)
    queries = setting.queries(family, count)
    masked = family == 'continued' and not whole
    scores = module.scores_of(setting, setting.methods(), queries, masked, channel)
    truths = setting.truths(family, masked, scores)
    facts = {**setting.told, 'channel': channel, 'steps': {name: one for name, one in setting.steps.items() if one}}
    compared = result.compared(scores, family, masked, truths, facts, top)
    folder = result.save_comparison(out, compared)
    print(result.markdown(compared))
    print(f'Written: {folder}/compare.md, compare.json, compare.png, concentration.png')
