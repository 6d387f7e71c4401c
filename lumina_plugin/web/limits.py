"""What the page allows: sizes, lengths, times and numbers, each of which it also tells its visitors."""

import dataclasses

from ..errors import LuminaError

_MIB = 2 ** 20
_FULL_RATE = 48_000 * 2  # samples of a second of audio, both channels, that an upload may unfold to


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of one page.

    Args:
        upload_mb (float): Largest upload, MiB. upload_seconds (float): Longest recording.
        seconds (float): Longest generation.
        disk_mb (float): What uploads and results may take in all, MiB.
        keep_minutes (float): After so long uploads and results are deleted.
        queue (int): Visitors who may wait; the next one is told so.
        history (int): Reports of generations that are kept; 0 keeps none. history_mb (float): And of so many MiB.
    """
    upload_mb: float = 50.
    upload_seconds: float = 300.
    disk_mb: float = 4096.
    seconds: float = 30.
    keep_minutes: float = 60.
    queue: int = 32
    history: int = 200
    history_mb: float = 256.

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            least = 0 if field.name.startswith('history') else 1
            if not getattr(self, field.name) >= least:
                raise LuminaError(f"The page's limit {field.name} is {getattr(self, field.name)}; give at least "
                                  f"{least}.")

    @property
    def upload_bytes(self) -> int:
        return int(self.upload_mb * _MIB)

    @property
    def upload_samples(self) -> int:
        """Samples of all channels that an upload may unfold to: a small file can hold hours, or dozens of channels."""
        return int(self.upload_seconds * _FULL_RATE)

    @property
    def keep_seconds(self) -> float:
        return 60 * self.keep_minutes

    @property
    def history_bytes(self) -> int:
        return int(self.history_mb * _MIB)
