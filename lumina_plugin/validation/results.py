"""What the suite's commands share: work that is kept as it is done, intervals of fractions, and a result's files."""

import dataclasses
import hashlib
import io
import json
import logging
import math
import typing as tp
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from tqdm import tqdm

from .. import __version__
from ..atomic import write_atomic, write_json
from ..errors import LuminaError
from .lds import Interval
from .truth import FloatArray

logger = logging.getLogger(__name__)

T = tp.TypeVar('T')
PART = 8  # items whose results are written together: what a stop can cost
Z95 = 1.959963984540054  # two-sided


def wilson(count: int, total: int) -> Interval:
    """A fraction with its 95 % interval by Wilson's score (1927); of nothing, NaN between 0 and 1.

    Args:
        count (int): How many of `total`.
    """
    if not 0 <= count <= total:
        raise ValueError(f"{count} of {total} is no fraction")
    if total == 0:
        return Interval(math.nan, 0., 1.)
    p, z2 = count / total, Z95 ** 2 / total
    centre = (p + z2 / 2) / (1 + z2)
    half = math.sqrt(p * (1 - p) * z2 + z2 ** 2 / 4) / (1 + z2)
    return Interval(p, max(0., min(p, centre - half)), min(1., max(p, centre + half)))  # rounding aside


# -- work that is kept --------------------------------------------------------------------------------------------

def digest(facts: tp.Any) -> str:
    """A short name for whatever serialises to JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def kept_parts(folder: Path, facts: tp.Any, items: tp.Sequence[T],
               make: tp.Callable[[tp.Sequence[T]], tp.Mapping[str, FloatArray]], label: str, part: int = PART
               ) -> tp.Dict[str, FloatArray]:
    """Results of items, made a few at a time; what an earlier call has finished is read.

    Args:
        folder (Path): Where they are kept. facts: All that the results depend on, items included, ready for JSON.
        items (sequence): n of them. make (callable): Of some items, arrays whose first dimension counts them.
        label (str): Of the progress bar. part (int): Items at a time.
    Returns:
        dict: The arrays, [n, ...].
    Raises:
        LuminaError: for no items.
    """
    if not items:
        raise LuminaError(f"There is nothing to do for '{label}': no query is left; give songs that are longer than "
                          "the prompt, or more of them.")
    place = folder / digest([__version__, part, facts])
    found = []
    with tqdm(total=len(items), desc=label, dynamic_ncols=True, delay=1) as bar:
        for first in range(0, len(items), part):
            some = items[first:first + part]
            path = place / f'{first:06d}.safetensors'
            arrays = _read(path)
            if arrays is None:
                arrays = {name: np.ascontiguousarray(array, dtype=np.float64) for name, array in make(some).items()}
                write_atomic(path, safetensors.numpy.save(arrays))
            found.append(arrays)
            bar.update(len(some))
    return {name: np.concatenate([arrays[name] for arrays in found]) for name in found[0]}


def kept_each(folder: Path, facts: tp.Any, items: tp.Mapping[str, T],
              make: tp.Callable[[tp.Sequence[T]], tp.Mapping[str, FloatArray]], label: str, part: int = PART
              ) -> tp.Dict[str, tp.Dict[str, FloatArray]]:
    """Results of items that are kept one by one, whatever they are asked for together with; made a few at a time.

    Args:
        folder (Path): Where they are kept. facts: All that the results depend on but the items, ready for JSON.
        items (mapping): By keys of their content, ready for JSON; an item's result depends on no other item.
        make, label, part: As of `kept_parts`.
    Returns:
        dict: By key, the item's row of each array, [...].
    """
    place = folder / digest([__version__, 'each', facts])
    paths = {key: place / f'{digest(key)}.safetensors' for key in items}
    found = {key: arrays for key, path in paths.items() if (arrays := _read(path)) is not None}
    missing = [key for key in items if key not in found]
    with tqdm(total=len(items), initial=len(found), desc=label, dynamic_ncols=True, delay=1) as bar:
        for first in range(0, len(missing), part):
            keys = missing[first:first + part]
            made = make([items[key] for key in keys])
            for row, key in enumerate(keys):
                found[key] = {name: np.array(array[row], np.float64, order='C') for name, array in made.items()}
                write_atomic(paths[key], safetensors.numpy.save(found[key]))
            bar.update(len(keys))
    return {key: found[key] for key in items}


def _read(path: Path) -> tp.Optional[tp.Dict[str, FloatArray]]:
    if not path.is_file():
        return None
    try:
        return safetensors.numpy.load_file(path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        logger.warning("%s is damaged (%s) and is made again.", path, error)
        return None


# -- files --------------------------------------------------------------------------------------------------------

def save(out: tp.Union[str, Path], name: str, markdown: str, data: tp.Any, picture: bytes) -> Path:
    """Write a result as `<out>/<name>/<name>.md`, `.json` and `.png`: the folder.

    Numbers that are not finite become null: JSON has none.
    """
    folder = Path(out) / name
    write_json(folder / f'{name}.json', _plain(data))
    write_atomic(folder / f'{name}.md', markdown)
    write_atomic(folder / f'{name}.png', picture)
    return folder


def _plain(value: tp.Any) -> tp.Any:
    if hasattr(value, '_asdict'):
        return _plain(value._asdict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tp.Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(head: tp.Sequence[str], rows: tp.Iterable[tp.Sequence[tp.Any]]) -> str:
    """A Markdown table."""
    lines = [head, ['---'] * len(head), *([str(cell) for cell in row] for row in rows)]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


class Panel(tp.NamedTuple):
    """One panel of `dots`: a title, an interval per row (None: nothing known), and values to draw lines at."""
    title: str
    values: tp.Sequence[tp.Optional[Interval]]
    lines: tp.Sequence[float] = ()


def dots(labels: tp.Sequence[str], panels: tp.Sequence[Panel], about: str,
         limits: tp.Optional[tp.Tuple[float, float]] = (-0.02, 1.02)) -> bytes:
    """A picture: panels side by side that share their rows, each value a dot with its interval; PNG."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(3.4 + 2.6 * len(panels), 1.4 + 0.28 * len(labels)), layout='constrained')
    axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    places = range(len(labels))[::-1]
    for axis, panel in zip(axes, panels, strict=True):
        for line in panel.lines:
            axis.axvline(line, color='0.35', linewidth=1, linestyle='--')
        for place, one in zip(places, panel.values, strict=True):
            if one is not None and math.isfinite(one.mean):
                axis.plot([one.low, one.high], [place, place], color='#4c6a92', linewidth=2)
                axis.plot(one.mean, place, 'o', color='#1d3557', markersize=5)
        axis.set_title(panel.title, fontsize=9)
        if limits is not None:
            axis.set_xlim(*limits)
        axis.tick_params(labelsize=8)
        for side in ('top', 'right'):
            axis.spines[side].set_visible(False)
    axes[0].set_ylim(-0.6, len(labels) - 0.4)
    axes[0].set_yticks(list(places), list(labels), fontsize=8)
    figure.supxlabel(about, fontsize=9)
    return png(figure)


def png(figure: tp.Any) -> bytes:
    """A matplotlib figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=130)
    return buffer.getvalue()
