"""What `lumina validate` measured of a recipe, as far as its results are there."""

import dataclasses
import json
import typing as tp
from pathlib import Path

PICTURES = {'lds': 'How well sums of scores foretell what retraining without songs does (LDS)',
            'false-payments': 'How often music that owes nobody pays somebody',
            'causal': 'Where the source of a continuation ranks',
            'channels': 'Whether the channels tell composition from production'}
_Json = tp.Dict[str, tp.Any]


@dataclasses.dataclass(frozen=True)
class Measure:
    """One line: what was measured, and by channel its mean with an interval of 95 %."""
    name: str
    values: tp.Dict[str, tp.Tuple[float, float, float]]


@dataclasses.dataclass(frozen=True)
class Measured:
    """All there is. `run` is the run that it was measured on, `pictures` are (words, file)."""
    run: str
    measures: tp.List[Measure]
    pictures: tp.List[tp.Tuple[str, Path]]


def measured(folder: tp.Optional[Path], recipe: str) -> tp.Optional[Measured]:
    """Read the results of `lumina validate` on a recipe; None where there are none.

    Args:
        folder (Path): Where they lie, one folder per measurement. recipe (str): Name of the store's recipe.
    """
    if folder is None:
        return None
    lds, payments = _read(folder, 'lds'), _read(folder, 'false-payments')
    run = str(lds.get('facts', {}).get('run', ''))
    lines = [*_lds(lds, recipe), *_payments(payments, recipe, run)]
    pictures = [(words, folder / name / f'{name}.png') for name, words in PICTURES.items()
                if (folder / name / f'{name}.png').is_file()]
    return Measured(run, lines, pictures) if lines or pictures else None


def _read(folder: Path, name: str) -> _Json:
    try:
        found = json.loads((folder / name / f'{name}.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lds(found: _Json, recipe: str) -> tp.List[Measure]:
    rows = {row.get('channel'): row.get('lds', {}) for row in found.get('rows', []) if row.get('method') == recipe}
    families = dict.fromkeys(family for values in rows.values() for family in values)
    return [Measure(f'Foretells retraining: {family}',
                    {key: _triple(values[family]) for key, values in rows.items() if family in values})
            for family in families]


def _payments(found: _Json, recipe: str, run: str) -> tp.List[Measure]:
    lines: tp.Dict[str, tp.Dict[str, tp.Tuple[float, float, float]]] = {}
    for row in found.get('rows', []):
        if row.get('store') != recipe or row.get('source') is not None or not row.get('paid'):
            continue
        if run and run not in str(row.get('run')):
            continue
        gate = 'printed' if row.get('gate') == 'paper' else row.get('gate')
        name = f"Pays somebody for music that owes nobody: {row.get('family')}, {gate} gate"
        lines.setdefault(name, {})[str(row.get('channel'))] = _triple(row['paid'])
    return [Measure(name, values) for name, values in lines.items()]


def _triple(found: _Json) -> tp.Tuple[float, float, float]:
    return float(found['mean']), float(found['low']), float(found['high'])
