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
        '--model', '-m', help="Folder or signature of a dora run; the standard suite's unless said.")] = None,
    truth: tp.Annotated[tp.Optional[Path], typer.Option(
        help="A ground truth of the run in another folder, e.g. one that is kept beside the code.")] = None,
    family: tp.Annotated[str, typer.Option(
        help="Queries: free, continued or heldout, of the ground truth; free alone where there is none.")] = 'free',
    count: tp.Annotated[int, typer.Option(min=2, help="Free generations, where there is no ground truth.")] = 16,
    whole: tp.Annotated[bool, typer.Option('--whole', help="Count the prompts of continuations, too.")] = False,
    baselines: tp.Annotated[str, typer.Option(
        help="What else to compare with, parted by commas: clap=FOLDER (or a hub name), clews=FOLDER; lpips and rps "
             "need nothing and are always there.")] = '',
    channel: tp.Annotated[str, typer.Option(help="Of methods that have several: 'P + M', P or M.")] = 'P + M',
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
    setting, found = module.open_setting(out, model, truth, baselines, device)
    if found is None and family != 'free':
        raise LuminaError(f"Queries of the family '{family}' come from a ground truth, and there is none of this run; "
                          "leave --family out, or make one with `lumina validate ground-truth`.")
    queries = [found.queries[column] for column in found.columns(family)] if found else setting.opened.free(count)
    masked = family == 'continued' and not whole
    scores = module.scores_of(setting, module.methods_of(setting), queries, masked, channel)
    truths = module.truths_of(found, family, masked, scores) if found else {}
    facts = {'run': setting.opened.run.name, 'channel': channel, 'baselines': baselines}
    compared = result.compared(scores, family, masked, truths, facts, top)
    folder = result.save_comparison(out, compared)
    print(result.markdown(compared))
    print(f'Written: {folder}/compare.md, compare.json, compare.png, concentration.png')
