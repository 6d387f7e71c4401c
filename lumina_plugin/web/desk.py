"""What visitors of the page can ask for, one at a time where the model is needed. Knows nothing of Gradio."""

import contextlib
import dataclasses
import itertools
import logging
import threading
import typing as tp
from pathlib import Path

from .. import audio
from ..errors import LuminaError
from ..explain import Explanation, explain
from ..report.schema import AttributionReport
from ..store.records import TrackRecord
from ..workflows import Prompt
from . import uploads
from .history import History, Influence
from .limits import Limits
from .private import Concealer
from .results import RECORDING, Result, Results
from .workplace import Workplace

if tp.TYPE_CHECKING:
    from ..workflows import Studio

logger = logging.getLogger(__name__)

Watch = tp.Callable[[float, str], None]
LISTENED = 30.  # seconds of a song that are played
FORM = 2 ** 16  # bytes that a form adds to a file
PAGE = 20  # songs on a page of the catalogue
COMPOSING = 0.55  # of the progress of a generation, before it is attributed


class Stopped(LuminaError):
    """A visitor stopped the work, or left."""


@dataclasses.dataclass(frozen=True)
class Songs:
    """A page of the catalogue: `found` songs answer to what was asked for, of which these are shown."""
    songs: tp.List[TrackRecord]
    found: int
    page: int
    pages: int


class Desk:
    """One model, its store, and what visitors do with them.

    Args:
        studio (Studio): Loaded. limits (Limits): What is allowed.
        history (path, optional): Folder for reports of past generations; None keeps none.
    """

    def __init__(self, studio: 'Studio', limits: tp.Optional[Limits] = None, history: tp.Optional[Path] = None):
        self.studio, self.limits = studio, limits or Limits()
        self.workplace = Workplace(self.limits.keep_seconds)
        self.results = Results(self.workplace.results, self.limits.keep_minutes)
        self.history = History(history, studio.store.hash, self.limits.history, self.limits.history_bytes,
                               studio.attributor.live.model_hash)
        self.concealer = Concealer([self.workplace.root, studio.store.path, studio.musicgen.name, Path.home(),
                                    Path.cwd(), *filter(None, [history])])
        self._model, self._jobs = threading.Lock(), threading.Lock()
        self._stops: tp.Dict[str, threading.Event] = {}
        self.workplace.watch()

    def close(self) -> None:
        """Stop all work and delete what visitors left."""
        for stop in list(self._stops.values()):
            stop.set()
        self.workplace.close()

    # -- what takes the model -----------------------------------------------------------------------------------------

    def generate(self, text: str = '', song: str = '', recording: tp.Optional[tp.Union[str, Path]] = None,
                 prompt_seconds: float = 3., seconds: float = 10., seed: float = 0, session: str = '',
                 watch: Watch = lambda done, what: None) -> Result:
        """Generate a clip with its attribution.

        Args:
            text (str): What it should sound like; may be empty. song (str): Id or title of a song to continue.
            recording (path, optional): An upload to continue. prompt_seconds (float): How much of either.
            seconds (float): Length, prompt included. seed (float): A whole number.
            session (str): Whose work it is, for `stop`. watch (callable): Called with what is done, 0 to 1, and words.
        Raises:
            LuminaError: for what cannot be done; `Stopped` where somebody stopped it.
        """
        self._expect_length(seconds)
        prompt = self._prompt(song, recording, prompt_seconds)
        with self._working(session, watch) as tell:
            name, folder = self.results.fresh()
            self.studio.attributor.watch = self._comparing(tell, COMPOSING)
            clip = self.studio.generate(
                folder, 'clip', text.strip() or None, prompt, float(seconds), seed=_whole(seed),
                progress=lambda done, total: tell(COMPOSING * min(1., done / max(total, 1)), 'Composing'))[0]
            tell(1., 'Writing the report')
            clip.audio.rename(folder / RECORDING)
            for left in clip.folder.iterdir():
                left.unlink()
            clip.folder.rmdir()
            result = self._written(name, folder, clip.report)
        if recording is None:  # what a visitor uploaded is in no history
            self.history.add(result.report, name)
        return result

    def attribute(self, recording: tp.Optional[tp.Union[str, Path]], session: str = '',
                  watch: Watch = lambda done, what: None) -> Result:
        """Attribute an upload; arguments and errors as for `generate`."""
        upload = uploads.accept(recording, self.workplace.cache, self.limits)
        with self._working(session, watch) as tell:
            name, folder = self.results.fresh()
            tell(0., 'Listening')
            self.studio.attributor.watch = self._comparing(tell, 0.1)
            report = self.studio.attributor.attribute_file(upload)
            wav, rate = audio.read_audio(upload)
            audio.save_audio(folder / RECORDING, audio.downmix(wav, min(2, len(wav))), rate)
            return self._written(name, folder, report)

    def admit(self, size: int) -> str:
        """Why an upload of so many bytes, its form included, is not taken; empty where it is."""
        if size > self.limits.upload_bytes + FORM:
            return f'Uploads of up to {self.limits.upload_mb:g} MiB are taken here.'
        if self.workplace.taken() + size > self.limits.disk_mb * 2 ** 20:
            return 'There is no room for uploads at the moment; come back later.'
        return ''

    def stop(self, session: str) -> bool:
        """Stop a visitor's work as soon as can be; False where there is none."""
        with self._jobs:
            stop = self._stops.get(session)
        if stop is not None:
            stop.set()
        return stop is not None

    def _expect_length(self, seconds: float) -> None:
        if not 1 <= seconds <= self.limits.seconds:
            raise LuminaError(f"A clip of {seconds:g} s cannot be made here; ask for 1 to {self.limits.seconds:g} s.")

    def _prompt(self, song: str, recording: tp.Optional[tp.Union[str, Path]], seconds: float
                ) -> tp.Optional[Prompt]:
        if song and recording:
            raise LuminaError("A clip continues either a song of the catalogue or a recording of yours; give one.")
        if song:
            track = self.song(song)
            return Prompt(self._recording_of(track), seconds, track.id)
        if recording:
            return Prompt(uploads.accept(recording, self.workplace.cache, self.limits), seconds)
        return None

    def _written(self, name: str, folder: Path, report: AttributionReport) -> Result:
        query = report.query.model_copy(update={'audio_file': RECORDING})
        result = Result(name, folder, self.concealer.report(report.model_copy(update={'query': query})))
        result.write()
        return result

    @contextlib.contextmanager
    def _working(self, session: str, watch: Watch) -> tp.Iterator[Watch]:
        """The model for this work alone. What it yields tells of progress, and raises once the work was stopped."""
        stop, most = threading.Event(), 0.
        with self._jobs:
            self._stops[session] = stop

        def tell(done: float, what: str) -> None:
            nonlocal most
            if stop.is_set():
                raise Stopped("Stopped; nothing was kept.")
            most = max(most, done)  # audiocraft steps back a little where one window of a long clip follows another
            watch(most, what)
        try:
            with self._model:
                tell(0., 'Starting')
                try:
                    yield tell
                finally:
                    self.studio.attributor.watch = lambda done, total: None
        finally:
            with self._jobs:
                if self._stops.get(session) is stop:
                    del self._stops[session]

    def _comparing(self, tell: Watch, begin: float) -> tp.Callable[[int, int], None]:
        """Progress over the checkpoints. A continuation makes several passes: each takes half of what is left."""
        passes = itertools.count()
        place = begin

        def compare(done: int, total: int) -> None:
            nonlocal place
            if done == 0 and next(passes):
                place += (1 - place) / 2
            tell(place + (1 - place) / 2 * done / total,
                 f'Comparing with {len(self.studio.attributor.song_ids):,} songs')
        return compare

    # -- what does not ------------------------------------------------------------------------------------------------

    def result(self, name: tp.Optional[str]) -> Result:
        """A result by its name."""
        return self.results.get(name)

    def songs(self, wanted: str = '', page: float = 1) -> Songs:
        """Songs whose id, title or artist holds `wanted`, some at a time, in the store's order."""
        words = wanted.casefold().split()
        found = [track for track in self.studio.store.tracks
                 if all(word in f'{track.id} {track.title} {track.artist}'.casefold() for word in words)]
        pages = max(1, -(-len(found) // PAGE))
        page = min(max(1, int(page)), pages)
        return Songs(found[(page - 1) * PAGE:page * PAGE], len(found), page, pages)

    def song(self, name: str) -> TrackRecord:
        """A song of the store by its id, or by its title where only one has it.

        Raises:
            LuminaError: when there is none, or several have that title.
        """
        tracks = self.studio.store.tracks
        titled = [track for track in tracks if track.id == name] or [
            track for track in tracks if track.title.casefold() == name.strip().casefold()]
        if len(titled) == 1:
            return titled[0]
        if titled:
            raise LuminaError(f"{len(titled)} songs are called “{name}”; give the id of one, such as {titled[0].id}.")
        from ..explain import nearest
        near = ' or '.join(f'{track} (“{title}”)' for track, title in nearest(
            name, {track.id: track.title or track.id for track in tracks}))
        raise LuminaError(f"There is no song “{name[:80]}” in the catalogue; "
                          f"{f'did you mean {near}?' if near else 'look for it in the tab Catalogue.'}")

    def influence(self, name: str) -> tp.Tuple[TrackRecord, tp.Dict[str, Influence]]:
        """A song, and by channel what past generations paid it."""
        track = self.song(name)
        return track, self.history.influence(track.id)

    def explanation(self, result: tp.Optional[str], song: str, channel: tp.Optional[str] = None) -> Explanation:
        """Why a song is paid in a result, or is not. Any song may be asked about."""
        return explain(self.result(result).report, song, channel, self.studio.store)

    def excerpt(self, song: str) -> Path:
        """The first seconds of a song of the catalogue, as WAV.

        Raises:
            LuminaError: where its recording is not on the server.
        """
        track = self.song(song)
        path = self.workplace.songs / f'{self.studio.store.position(track.id):07d}.wav'
        if not path.is_file():
            source = self._recording_of(track)
            wav, rate = audio.read_audio(source)
            audio.save_audio(path, audio.downmix(wav, min(2, len(wav)))[..., :int(LISTENED * rate)], rate)
        path.touch()
        return path

    def segment(self, result: tp.Optional[str], index: int) -> tp.Tuple[Path, float, float]:
        """One segment of what was attributed, as WAV, with where it begins and ends in seconds.

        Raises:
            LuminaError: for a segment that there is not.
        """
        import soundfile as sf
        made = self.result(result)
        segments = next(iter(made.report.channels.values())).segments
        if not 0 <= index < len(segments):
            raise LuminaError(f"There is no segment {index}; this music has {len(segments)}, counted from 0.")
        begin, end = segments[index].start, segments[index].end
        path = made.folder / f'segment-{index}.wav'
        if not path.is_file():
            with sf.SoundFile(made.recording) as file:
                rate = file.samplerate
                file.seek(min(int(begin * rate), file.frames))
                data = file.read(int((end - begin) * rate), dtype='int16', always_2d=True)
            sf.write(path, data, rate, subtype='PCM_16')
        path.touch()
        return path, begin, end

    def _recording_of(self, track: TrackRecord) -> Path:
        if track.path is None or not Path(track.path).is_file():
            raise LuminaError(f"The recording of “{track.title or track.id}” is not on this server, only its "
                              "fingerprint; choose another song.")
        return Path(track.path)


def _whole(seed: float) -> int:
    try:
        return int(seed)
    except (TypeError, ValueError, OverflowError):
        raise LuminaError("The seed is no whole number; give one, such as 7.") from None
