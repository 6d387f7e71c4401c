"""`lumina validate soak`."""

import typing as tp
from pathlib import Path

import typer

from .validate import OUT, validate_app


@validate_app.command('soak')
def soak(
    out: tp.Annotated[Path, typer.Option('--out', '-o', help="Folder for the record, and where the run is looked for.")
                      ] = OUT,
    model: tp.Annotated[tp.Optional[str], typer.Option(
        '--model', '-m', help="Folder or signature of a dora run with a store; the suite's unless said.")] = None,
    store: tp.Annotated[tp.Optional[Path], typer.Option(help="Another store than the run's own.")] = None,
    cycles: tp.Annotated[int, typer.Option(min=1, help="Clips to generate and attribute, earlier calls included.")
                         ] = 10_000,
    seconds: tp.Annotated[float, typer.Option(min=.1, help="Length of a clip.")] = 1.,
    together: tp.Annotated[int, typer.Option(min=1, help="Clips that are generated at once.")] = 16,
) -> None:
    """Generate and attribute thousands of times in one process: does it fail, does its memory grow?

    It can be stopped at any time and goes on from there. Writes soak.md, soak.json and soak.png, and ends with exit
    code 1 where a cycle failed or memory grew beyond 5 %.
    """
    from ..errors import LuminaError
    from ..models import run_folder
    from ..validation import soak as module
    from ..validation.suite import finished_run
    from ..workflows import Studio
    run = run_folder(model) if model is not None else finished_run(out.absolute())
    if run is None:
        raise LuminaError(f"{model or f'The run of the suite below {out}'} is not there; name a run by --model, or "
                          "make the suite's with `lumina validate ground-truth`.")
    studio = Studio(run, store)
    found = module.soak(studio.musicgen, out / 'soak', cycles, seconds, together)
    module.save(out / 'soak', found)
    print(module.markdown(found))
    print(f"Written: {out / 'soak'}/soak.md, soak.json, soak.png")
    if not module.passed(found):
        raise typer.Exit(1)
