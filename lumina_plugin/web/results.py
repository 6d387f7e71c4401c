"""What a visitor made: a report with its files, under a name that nobody can guess, until it is deleted."""

import dataclasses
import re
import secrets
import typing as tp
from pathlib import Path

from ..errors import LuminaError
from ..report.schema import AttributionReport

_NAME = re.compile(r'[0-9a-f]{32}')
RECORDING, JSON_FILE, HTML_FILE, CSV_FILE = 'recording.wav', 'report.json', 'report.html', 'report.csv'


@dataclasses.dataclass(frozen=True)
class Result:
    """A report and its files.

    Args:
        name (str): 128 random bits: whoever knows it may see it. folder (Path): With all files.
        report (AttributionReport): As visitors may see it.
    """
    name: str
    folder: Path
    report: AttributionReport

    @property
    def recording(self) -> Path:
        """What was attributed, as WAV."""
        return self.folder / RECORDING

    @property
    def files(self) -> tp.Dict[str, Path]:
        """What can be downloaded, by kind."""
        return {'json': self.folder / JSON_FILE, 'csv': self.folder / CSV_FILE, 'html': self.folder / HTML_FILE,
                'wav': self.recording}

    def write(self) -> None:
        """Write the report in every form, the recording being there."""
        from ..report.render import render_html, to_csv
        self.report.save(self.folder / JSON_FILE)
        to_csv(self.report, self.folder / CSV_FILE)
        render_html(self.report, self.folder / HTML_FILE, self.recording)


class Results:
    """Results in a folder; another thread may delete what is old.

    Args:
        folder (Path): One folder per result in it. keep_minutes (float): As visitors are told.
    """

    def __init__(self, folder: Path, keep_minutes: float):
        self.folder, self.keep_minutes = folder, keep_minutes

    def fresh(self) -> tp.Tuple[str, Path]:
        """A name and an empty folder for a new result."""
        name = secrets.token_hex(16)
        (self.folder / name).mkdir()
        return name, self.folder / name

    def get(self, name: tp.Optional[str]) -> Result:
        """The result of that name.

        Raises:
            LuminaError: when there is none (any more).
        """
        if not name:
            raise LuminaError("There is no result yet; generate music or attribute a file first.")
        folder = self.folder / name if _NAME.fullmatch(name) else None
        if folder is None or not (folder / JSON_FILE).is_file():
            raise LuminaError(f"That result is not here any more; results are deleted after {self.keep_minutes:g} "
                              "minutes, so make it once more.")
        return Result(name, folder, AttributionReport.load(folder / JSON_FILE))
