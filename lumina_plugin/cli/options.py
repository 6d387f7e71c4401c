"""Options that several commands share."""

import typing as tp
from pathlib import Path

import typer

Source = tp.Annotated[str, typer.Argument(
    metavar='MODEL', help="Folder or signature of a dora run, an exported MusicGen folder, or a hub name.")]
Model = tp.Annotated[tp.Optional[str], typer.Option(
    '--model', '-m', help="Folder or signature of a dora run, an exported folder, or a hub name; "
                          "the quickstart's run unless said.")]
Store = tp.Annotated[tp.Optional[Path], typer.Option(
    '--store', '-s', help="Fingerprint store; the one beside the run's checkpoints unless said.")]
Checkpoint = tp.Annotated[tp.Optional[str], typer.Option(
    metavar='NAME|FILE', help="An earlier checkpoint whose weights the store keeps, e.g. epoch-0004, or the "
                              "checkpoint.th of a training that has them; the last unless said.")]
Device = tp.Annotated[tp.Optional[str], typer.Option(help="cpu or cuda; cuda where there is one unless said.")]
Quiet = tp.Annotated[bool, typer.Option('--quiet', '-q', help="No progress and no notes, only results.")]
Generations = tp.Annotated[tp.Optional[str], typer.Option(
    '--generations-of', help="A model of other songs with the same codec, whose generations measure chance for "
                             "generations, or `none`; what the run was trained on from unless said.")]
