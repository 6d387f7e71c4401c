"""Reports of past generations, in a folder that the server's owner names: what one song was paid over all of them.

Each report is one file, `<time>-<id>.json`, as `lumina generate` writes it: readable by everything that reads reports.
When there are too many, the oldest of these go, and no other file. Nothing that a visitor uploaded is in them.
"""

import dataclasses
import datetime
import logging
import re
import threading
import typing as tp
from pathlib import Path

from ..atomic import writable_folder, write_atomic
from ..errors import LuminaError
from ..report.schema import AttributionReport

logger = logging.getLogger(__name__)

_OWN = re.compile(r'\d{8}T\d{6}-[0-9a-f]{32}\.json')


@dataclasses.dataclass(frozen=True)
class Earned:
    """What one generation paid one song in one channel; `low` and `high` where the report has an interval."""
    share: float
    low: tp.Optional[float]
    high: tp.Optional[float]


@dataclasses.dataclass(frozen=True)
class Past:
    """One generation: when, by what text, and by channel who earned what and what stayed unattributed."""
    name: str
    created: datetime.datetime
    headline: str
    seed: tp.Optional[int]
    unattributed: tp.Dict[str, float]
    earned: tp.Dict[str, tp.Dict[str, Earned]]


@dataclasses.dataclass(frozen=True)
class Influence:
    """One song in one channel over past generations.

    Args:
        generations (int): How many there are. paid (int): How many paid it. mean (float): Mean share over all of them.
        first (int): In how many nobody earned more.
    """
    generations: int
    paid: int
    mean: float
    first: int


class History:
    """Past generations by one store.

    Args:
        folder (Path, optional): Where their reports lie; None keeps nothing.
        store_hash (str): Of reports that were made with other fingerprints nothing is counted.
        model_hash (str, optional): Of those of other weights, either.
        most (int), most_bytes (int): What is kept at most, the newest.
    Raises:
        LuminaError: for a folder that cannot be written.
    """

    def __init__(self, folder: tp.Optional[Path], store_hash: str, most: int = 200, most_bytes: int = 2 ** 28,
                 model_hash: tp.Optional[str] = None):
        self.folder = writable_folder(Path(folder)) if folder is not None and most > 0 else None
        self.store_hash, self.model_hash, self.most, self.most_bytes = store_hash, model_hash, most, most_bytes
        self._lock = threading.Lock()
        self._known: tp.Dict[str, tp.Optional[Past]] = {}

    def add(self, report: AttributionReport, name: str) -> None:
        """Keep a generation's report; `name` tells it from others of the same second."""
        if self.folder is None:
            return
        file = f'{report.created:%Y%m%dT%H%M%S}-{name}.json'
        with self._lock:
            write_atomic(self.folder / file, report.model_dump_json(indent=2) + '\n')
            self._prune()

    def past(self) -> tp.List[Past]:
        """Generations made with this store and model, the latest first."""
        if self.folder is None:
            return []
        with self._lock:
            names = sorted((path.name for path in self.folder.glob('*.json')), reverse=True)
            self._known = {name: self._known[name] if name in self._known else self._read(name) for name in names}
            return [past for past in self._known.values() if past is not None]

    def influence(self, track_id: str) -> tp.Dict[str, Influence]:
        """By channel, what a song was paid over all of them; empty where there are none."""
        past = self.past()
        channels = dict.fromkeys(channel for one in past for channel in one.unattributed)
        return {channel: _over(track_id, channel, [one for one in past if channel in one.unattributed])
                for channel in channels}

    def _read(self, name: str) -> tp.Optional[Past]:
        assert self.folder is not None
        try:
            report = AttributionReport.load(self.folder / name)
        except LuminaError as error:
            logger.warning("A past generation is left out: %s", error)
            return None
        made = report.model.checkpoint  # reports before 1.4 do not say
        other = made is not None and self.model_hash is not None and made.model_hash != self.model_hash
        return None if other or report.store.hash != self.store_hash else summarised(report, name)

    def _prune(self) -> None:
        assert self.folder is not None
        # its own files alone: whoever names a folder may have other things in it
        files = sorted((path for path in self.folder.glob('*.json') if _OWN.fullmatch(path.name)), reverse=True)
        room = self.most_bytes
        for place, path in enumerate(files):
            try:
                room -= path.stat().st_size
                if place >= self.most or (room < 0 and place > 0):
                    path.unlink()
            except FileNotFoundError:
                continue


def summarised(report: AttributionReport, name: str) -> Past:
    """What a past generation's report says of who earned what."""
    from ..report import words
    return Past(name, report.created, words.headline(report), report.query.seed,
                {key: channel.unattributed for key, channel in report.channels.items()},
                {key: {row.track_id: Earned(row.share, row.share_low, row.share_high)
                       for row in channel.rows if row.share > 0} for key, channel in report.channels.items()})


def _over(track_id: str, channel: str, past: tp.Sequence[Past]) -> Influence:
    shares = [one.earned[channel][track_id].share if track_id in one.earned[channel] else 0. for one in past]
    first = sum(share > 0 and share >= max(earned.share for earned in one.earned[channel].values())
                for share, one in zip(shares, past, strict=True))
    return Influence(len(past), sum(share > 0 for share in shares), sum(shares) / len(shares), first)
