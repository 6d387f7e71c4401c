"""Run all of `lumina validate` on the standard suite and write docs/validation.md, with machine and versions:
`make validate`.

    python benchmarks/validation.py [--out outputs/validation] [--only lds --only causal]

Whatever is finished is found again, so that it can be stopped at any time. A measurement that is left out by `--only`
keeps the result of its last run; one that never ran is said to be missing.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import typing as tp
from pathlib import Path

import torch
import typer

HERE = Path(__file__).parent
PEERS = ['--peers'] if importlib.util.find_spec('dattri') and importlib.util.find_spec('kronfluence') else []
COMMANDS = {  # by the name of a result, what makes it
    'ground-truth': ['ground-truth'], 'lds': ['lds', '--score', 'cosine', *PEERS], 'leave-out': ['leave-out'],
    'causal': ['causal'], 'self': ['self'], 'repro': ['repro'], 'false-payments': ['false-payments'],
    'channels': ['channels'], 'soak': ['soak']}
PICTURES = ('lds', 'causal', 'false-payments', 'channels')  # that the page shows


def result(out: Path, name: str) -> str:
    """A result's table, one level below the page's headings; or that there is none."""
    path = out / name / f'{name}.md'
    if not path.is_file():
        return f'Not measured yet: `lumina validate {name}`.'
    return path.read_text(encoding='utf-8').strip().replace('\n## ', '\n#### ').replace('\n# ', '\n### ')


def picture(out: Path, name: str, folder: Path) -> str:
    """Copy a result's picture beside the page, and name it."""
    path = out / name / f'{name}.png'
    if not path.is_file():
        return ''
    folder.mkdir(exist_ok=True)
    shutil.copyfile(path, folder / path.name)
    return f'\n\n![{name}](validation/{path.name})'


def main(out: Path = Path('outputs/validation'), only: tp.Optional[tp.List[str]] = None) -> None:
    """Measure and write."""
    chosen = list(COMMANDS) if only is None else only
    unknown = [name for name in chosen if name not in COMMANDS]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]} is no measurement; choose of {', '.join(COMMANDS)}")
    for name in chosen:
        print(f'-- lumina validate {name}', file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, '-m', 'lumina_plugin', 'validate', *COMMANDS[name], '--out', str(out)],
                              check=False)
        if done.returncode:
            print(f'lumina validate {name} ended with exit code {done.returncode}.', file=sys.stderr)
    from all import processor
    page = (HERE / 'validation_head.md').read_text(encoding='utf-8')
    docs = HERE.parent / 'docs'
    for name in COMMANDS:
        text = result(out, name) + (picture(out, name, docs / 'validation') if name in PICTURES else '')
        page = page.replace('{' + name + '}', text)
    recipes = out / 'recipes.md'
    page = page.replace('{recipes}', recipes.read_text() if recipes.is_file() else 'Not measured yet.')
    machine = (f'{processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, '
               f'torch {torch.__version__}')
    (docs / 'validation.md').write_text(page.replace('{machine}', machine), encoding='utf-8')
    print(docs / 'validation.md')


if __name__ == '__main__':
    typer.run(main)
