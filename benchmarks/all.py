"""Run every benchmark of speed and safety and write docs/benchmarks.md, with machine and versions: `make bench`.

    python benchmarks/all.py [--shape quickstart --shape small]

The comparison with other libraries needs them installed: `pip install -e '.[peers]'`.
"""

import importlib.util
import os
import platform
import subprocess
import sys
import typing as tp
from pathlib import Path

import torch
import typer

HERE = Path(__file__).parent


def output_of(script: str, *arguments: str) -> str:
    """What a benchmark prints; its progress stays on the terminal."""
    print(f'-- {script} {" ".join(arguments)}', file=sys.stderr, flush=True)
    argv = [sys.executable, str(HERE / script), *arguments]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def peers(shapes: tp.Sequence[str]) -> str:
    """The comparison with other libraries, on the CPU with the quickstart's model; or why there is none."""
    if 'quickstart' not in shapes:
        return 'Not measured in this run: `quickstart` was not among its shapes.'
    if importlib.util.find_spec('dattri') is None:
        return "Not measured in this run: dattri was not installed (`pip install -e '.[peers]'` brings it)."
    return output_of('peers.py', '--shape', 'quickstart')


def attribution() -> str:
    """What attributing a generation costs, with the model of a finished quickstart."""
    from lumina_plugin.errors import LuminaError
    from lumina_plugin.workflows import quickstart_run
    try:
        quickstart_run()
    except LuminaError as error:
        return f'Not measured in this run: {error}'
    return output_of('attribution.py')


def processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.machine()


def main(shape: tp.Optional[tp.List[str]] = None) -> None:
    """Measure and write."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    shapes = shape or ['quickstart', 'small', *(['medium', 'large'] if device == 'cuda' else [])]
    on = torch.cuda.get_device_name() if device == 'cuda' else processor()
    sections = {
        'capture': output_of('capture.py', '--device', device, *(part for one in shapes for part in ('--shape', one))),
        'peers': peers(shapes),
        'attribution': attribution(),
        'scale': output_of('scale.py'),
        'intervals': output_of('intervals.py'),
        'kill': output_of('store_kill.py'),
        'machine': f'{on}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, '
                   f'torch {torch.__version__}'}
    text = (HERE / 'benchmarks_head.md').read_text()
    for name, section in sections.items():
        text = text.replace('{' + name + '}', section)
    (HERE.parent / 'docs' / 'benchmarks.md').write_text(text)


if __name__ == '__main__':
    typer.run(main)
