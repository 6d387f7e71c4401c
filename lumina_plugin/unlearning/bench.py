"""A ground truth with the model that it is of, as unlearning is judged by it: MusicGen's or a diffusion's."""

import abc
import typing as tp
from pathlib import Path

import safetensors

from ..errors import LuminaError
from ..hashing import state_hash
from ..validation.lds import HalfLosses, half_losses
from ..validation.queries import Query
from ..validation.results import digest
from ..validation.truth import GroundTruth
from .masks import Piece
from .musicgen import MusicGenSubject
from .subject import Subject

if tp.TYPE_CHECKING:
    from ..dit.ground_truth import DiTTruth

FAMILIES = {'free': False, 'continued': True, 'heldout': False}  # and whether a prompt's frames are left out


def of_diffusion(truth: Path) -> bool:
    """Whether a file is a ground truth of a diffusion; not of one that cannot be read."""
    from ..dit.ground_truth import FORMAT
    try:
        with safetensors.safe_open(str(truth), 'pt') as file:
            return (file.metadata() or {}).get('format') == FORMAT
    except (OSError, safetensors.SafetensorError):
        return False


class Bench(abc.ABC):
    """What judges.

    Args:
        subject (Subject): The model and its songs, in the truth's order. facts (dict): Of the truth, ready for JSON.
    Raises:
        LuminaError: when the truth is of another model.
    """

    def __init__(self, subject: Subject, facts: tp.Any):
        self.subject, self.facts = subject, digest(facts)
        model, known = state_hash(subject.weights), facts.get('model')
        if known not in (None, model):
            raise LuminaError(f"The ground truth is of another model ({str(known)[:12]}) than run "
                              f"{subject.folder.name} ({model[:12]}); name the run that it was made of.")

    @abc.abstractmethod
    def queries(self, family: str) -> tp.List[Piece]:
        """Its queries of a family, as they are before anything is masked.

        Raises:
            LuminaError: when it has none.
        """

    @abc.abstractmethod
    def halves(self, family: str) -> HalfLosses:
        """What retrained halves say of them."""

    def _expect(self, family: str, count: int) -> None:
        if not count:
            raise LuminaError(f"This ground truth has no queries of the family '{family}'; ask for another.")


class MusicGenBench(Bench):
    """The suite's.

    Args:
        truth (GroundTruth): Of the run. musicgen: audiocraft `MusicGen` of it. run (Path): Its folder.
    """

    def __init__(self, truth: GroundTruth, musicgen: tp.Any, run: Path):
        self.truth, self.lm = truth, musicgen.lm
        songs = [self._piece(str(query.source), query, False) for query in self._of('songs')]
        super().__init__(MusicGenSubject(run, musicgen.lm, musicgen.compression_model, songs), truth.facts)

    def queries(self, family: str) -> tp.List[Piece]:
        found = self._of(family)
        self._expect(family, len(found))
        return [self._piece(query.id, query, FAMILIES[family]) for query in found]

    def halves(self, family: str) -> HalfLosses:
        return half_losses(self.truth, self.truth.columns(family), FAMILIES[family])

    def _of(self, family: str) -> tp.List[Query]:
        return [self.truth.queries[column] for column in self.truth.columns(family)]

    def _piece(self, name: str, query: Query, masked: bool) -> Piece:
        return Piece(name, [query.example(self.lm, masked)])


class DiffusionBench(Bench):
    """A diffusion's own.

    Args:
        truth (DiTTruth): Of the run. subject (Subject): The run, opened.
    Raises:
        LuminaError: when they are of different songs.
    """

    def __init__(self, truth: 'DiTTruth', subject: Subject):
        songs = {song.id: song for song in subject.songs}
        missing = [song for song in truth.songs if song not in songs]  # a silent one has nothing that could be lost
        if missing or len(songs) != len(truth.songs):
            raise LuminaError(f"The ground truth is of {len(truth.songs)} songs and run {subject.folder.name} of "
                              f"{len(songs)}{f', without {missing[0]}' if missing else ''}; name the run that it was "
                              "made of.")
        subject.songs = [songs[song] for song in truth.songs]
        self.truth = truth
        super().__init__(subject, truth.facts)

    def queries(self, family: str) -> tp.List[Piece]:
        found = [self.truth.queries[column] for column in self.truth.columns(family)]
        self._expect(family, len(found))
        return [Piece(query.id, [query]) for query in found]

    def halves(self, family: str) -> HalfLosses:
        return self.truth.halves(self.truth.columns(family))
