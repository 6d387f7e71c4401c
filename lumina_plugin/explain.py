"""Why is a song paid, or not? Every number of one song in a report, traced from its cosine to its share.

All comes from the report itself: where a formula's inputs stand in it, the number is computed again, so that a report
whose numbers do not follow from each other is found out. A store is asked only about songs that a report does not hold.
"""

import dataclasses
import difflib
import math
import typing as tp

import numpy as np

from . import statistics
from .calibration import q_values
from .errors import LuminaError
from .report import words
from .report.schema import AttributionReport, ChannelReport, SongRow

if tp.TYPE_CHECKING:
    from .store import FingerprintStore

Standing = tp.Literal['compared', 'silent', 'unreadable', 'waiting', 'withdrawn', 'unknown']
SUGGESTIONS = 3
_ALIKE = 0.5  # of difflib's ratio, from which a name is worth suggesting
_AGREES = 1e-5  # relative; scores of large catalogues are rounded to float32 before they are standardised


@dataclasses.dataclass(frozen=True)
class Step:
    """One number on the way to a share.

    Attributes:
        name: e.g. 'STS'. symbol: as formulas write it, e.g. 'STS'.
        formula: with this song's numbers in it, in plain Unicode; four digits of each are shown.
        value: the report's number, as reports print it. number: the same, unrounded.
        words: a sentence that says what it means for this song.
        again: the number computed anew from others in the report; None where the report does not hold what it takes.
    """
    name: str
    symbol: str
    formula: str
    value: str
    number: float
    words: str
    again: tp.Optional[float] = None

    @property
    def follows(self) -> bool:
        """Whether the report's number is the one that its other numbers give, as far as they can."""
        return self.again is None or math.isclose(self.number, self.again, rel_tol=_AGREES, abs_tol=1e-9)


@dataclasses.dataclass(frozen=True)
class ChannelExplanation:
    """One song in one channel.

    Attributes:
        key: e.g. 'P'. name: of the channel, in words. paid: whether the song has a share. share: of the channel.
        answer: why it is paid, or is not, in one sentence.
        note: what the other reading of a continuation says of it; empty where there is none.
        steps: in the order in which they follow from each other.
    """
    key: str
    name: str
    paid: bool
    share: float
    answer: str
    note: str
    steps: tp.List[Step]


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a report, and where asked its store, say of one song.

    Attributes:
        track_id, title, artist: as the report or the store has them; of an unknown song only what was asked for.
        standing: 'compared', or why it was not.
        answer: one sentence: what the song is paid, or why it cannot be.
        channels: empty unless it was compared.
        suggestions: (id, title) of songs with like names, where there is none of that name.
    """
    track_id: str
    title: str
    artist: str
    standing: Standing
    answer: str
    channels: tp.List[ChannelExplanation]
    suggestions: tp.List[tp.Tuple[str, str]]


def explain(report: AttributionReport, track: str, channel: tp.Optional[str] = None,
            store: tp.Optional['FingerprintStore'] = None) -> Explanation:
    """Trace one song's numbers in a report, or say why it has none.

    Args:
        report (AttributionReport): Any, of any version.
        track (str): Id of the song, or its title where only one song has it.
        channel (str, optional): That channel alone.
        store (FingerprintStore, optional): The report's, to be asked about songs that were not compared.
    Raises:
        LuminaError: for a channel that the report does not have.
    """
    if channel is not None and channel not in report.channels:
        raise LuminaError(f"The report has no channel {channel}; it has {' and '.join(report.channels)}.")
    keys = [channel] if channel is not None else list(report.channels)
    rows = {key: _find(report.channels[key].rows, track) for key in keys}
    found = next((row for row in rows.values() if row is not None), None)
    if found is None:
        return _absent(report, track, store)
    channels = [_explain_channel(report, key, row) for key, row in rows.items() if row is not None]
    return Explanation(found.track_id, found.title, found.artist, 'compared', _overall(found, channels), channels, [])


def _find(rows: tp.Sequence[SongRow], name: str) -> tp.Optional[SongRow]:
    """The row of that id, or of that title if there is one such row."""
    for row in rows:
        if row.track_id == name:
            return row
    titled = [row for row in rows if row.title.casefold() == name.casefold()]
    return titled[0] if len(titled) == 1 else None


def _overall(row: SongRow, channels: tp.Sequence[ChannelExplanation]) -> str:
    paid = [f'{words.percent(part.share)} of the {words.channel_words(part.key).money}' for part in channels
            if part.paid]
    if paid:
        return f'{words.song(row)} is paid {" and ".join(paid)}.'
    if len(channels) == 1:
        return channels[0].answer
    return f'{words.song(row)} is paid nothing: it was compared, and in no channel does it qualify.'


# -- one channel --------------------------------------------------------------------------------------------------


def _explain_channel(report: AttributionReport, key: str, row: SongRow) -> ChannelExplanation:
    channel = report.channels[key]
    steps = [*_likeness(report, channel, row), *_standing_out(channel, row), *_chance(channel, row),
             *_printed_gate(channel, row), _share(key, channel, row)]
    return ChannelExplanation(key, words.channel_words(key).name, row.share > 0, row.share,
                              why(key, channel, row, report.query.silent), _other_reading(report, key, row), steps)


def _likeness(report: AttributionReport, channel: ChannelReport, row: SongRow) -> tp.List[Step]:
    """Cosine and score: what the fingerprints themselves say."""
    names = [point.name for point in report.checkpoints]
    over = f'at {names[0]}' if len(names) == 1 else f'mean of {len(names)} checkpoints ({_listed(names)})'
    cosine = Step('Cosine', 's', f's = cos(g, k), {over}', words.number(row.cosine), row.cosine,
                  f"g is the music’s fingerprint and k the song’s: 1 is the same direction, 0 is unrelated; of "
                  f"{channel.songs:,} songs, {_closer(channel, row)}.")
    if channel.score_name == 'kernel':
        ridge = report.recipe.keys.get('scoring.ridge')
        formula = f'r = [K (KᵀK + λI)⁻¹ g]ᵢ, λ = {ridge if ridge is not None else "as the recipe says"}, {over}'
        meaning = "Kernel regression: how much of the music this song explains beside all others, K being all songs’ " \
                  "fingerprints"
    elif channel.score_name == 'cosine':
        formula, meaning = 'r = s', "This recipe scores by the cosine itself"
    else:
        formula, meaning = f'r = {channel.score_name}(g, k), {over}', f"The recipe’s score “{channel.score_name}”"
    again = row.cosine if channel.score_name == 'cosine' else None
    return [cosine, Step('Score', 'r', formula, words.number(row.score), row.score,
                         f'{meaning}; it ranks {row.rank:,} of {channel.songs:,}.', again)]


def _listed(names: tp.Sequence[str]) -> str:
    return ', '.join(names) if len(names) <= 6 else f'{names[0]} … {names[-1]}'


def _closer(channel: ChannelReport, row: SongRow) -> str:
    closer = sum(other.cosine > row.cosine for other in channel.rows)
    return 'none is closer' if not closer else f'{closer:,} {"is" if closer == 1 else "are"} closer'


def _standing_out(channel: ChannelReport, row: SongRow) -> tp.List[Step]:
    """STS, LIP and weight: what follows from the scores of all songs."""
    scores = np.array([other.score for other in channel.rows])
    spread = statistics.spread_of(scores)
    mean, sd = spread.peak * spread.mean, spread.peak * spread.sd
    sts = float(statistics.standardised_scores(scores[row.rank - 1:row.rank], spread)[0])
    defined = channel.songs >= statistics.MIN_SONGS and sd > 0
    formula = (f'STS = (r − μ)/sd = ({_show(row.score)} − {_show(mean)})/{_show(sd)}' if defined else
               'STS = 0: fewer than 3 songs, or equal scores, have no spread')
    lip, weight = float(statistics.lip(row.sts)), float(statistics.weights(row.sts))
    side = 'above' if row.sts >= 0 else 'below'
    return [
        Step('STS', 'STS', formula, words.number(row.sts, 2), row.sts,
             f'The score lies {words.number(abs(row.sts), 2)} standard deviations {side} the mean of all '
             f'{channel.songs:,} songs; above 1 a song stands out.', sts),
        Step('LIP %', 'LIP', f'LIP % = (tanh(STS/2) + 1)/2 · 100 = (tanh({_show(row.sts / 2)}) + 1)/2 · 100',
             f'{row.lip_percent:.1f}', row.lip_percent,
             'The same on a scale of 0 to 100, where 50 is an average song; no money depends on it.', 50 * (lip + 1)),
        Step('Weight', 'w', f'w = max(0, STS − 1)² = max(0, {_show(row.sts)} − 1)²', words.number(row.weight, 2),
             row.weight, 'What counts when the channel is divided, if the gate lets the song through.' if row.weight
             else 'An STS of 1 or less weighs nothing.', weight)]


def _chance(channel: ChannelReport, row: SongRow) -> tp.List[Step]:
    """p and q of the calibrated gate, where the store has outside songs."""
    found = channel.calibration
    if found is None or row.p_value is None or row.q_value is None:
        return []
    pool = found.outside_songs * channel.songs
    at_least = max(0, round(row.p_value * (1 + pool)) - 1)
    passes = row.q_value <= found.rate
    role = 'this gate decides' if found.decides else 'a second opinion: the printed gate decides'
    p = Step('Chance', 'p', f'p = (1 + k)/(1 + n·N) = (1 + {at_least:,})/(1 + {found.outside_songs}·{channel.songs:,})',
             words.odds(row.p_value), row.p_value,
             f'Of {pool:,} comparisons of {found.outside_songs} songs that owe nobody with the catalogue, {at_least:,} '
             'came as close or closer.', (1 + at_least) / (1 + pool))
    place, smallest = _adjusted_by(channel, row)
    formula = f'q = p·N/i = {_show(smallest)}·{channel.songs:,}/{place:,} {"≤" if passes else ">"} {found.rate:g}'
    if smallest != row.p_value:
        formula += f' ({_show(smallest)} is the p in place {place:,})'
    again = float(q_values([other.p_value or 0. for other in channel.rows])[row.rank - 1])
    return [p, Step('Calibrated gate', 'q', formula, words.number(row.q_value), row.q_value,
                    f'p, adjusted for asking about {channel.songs:,} songs at once; the song '
                    f'{"passes" if passes else "does not pass"} ({role}).', again)]


def _adjusted_by(channel: ChannelReport, row: SongRow) -> tp.Tuple[int, float]:
    """Place i and value of the p by which Benjamini and Hochberg adjust this song's: the least p·N/i from it on."""
    ordered = np.sort([other.p_value or 0. for other in channel.rows])
    first = int(np.searchsorted(ordered, row.p_value or 0., side='right')) - 1  # of equal ones the last counts
    ratios = ordered[first:] / np.arange(first + 1, len(ordered) + 1)
    best = first + int(np.argmin(ratios))
    return best + 1, float(ordered[best])


def _printed_gate(channel: ChannelReport, row: SongRow) -> tp.List[Step]:
    """z and confidence: the paper's gate."""
    z = float(statistics.z_score(row.cosine, channel.noise_floor, channel.noise_mean))
    how = 'measured between the store’s own songs' if channel.noise_floor_how == 'measured' else '1/√D'
    confidence = float(statistics.confidence(row.cosine, channel.noise_floor, channel.noise_mean))
    noise = 'normally distributed with that width' if channel.noise_floor_how == 'measured' else 'isotropic'
    role = 'a second opinion: the calibrated gate decides' if channel.calibrated else 'this gate decides'
    above = _show(row.z) if row.z > 0 else f'max(0, {_show(row.z)})'
    return [
        Step('z', 'z', f'z = (s − μ₀)/σ₀ = ({_show(row.cosine)} − {_show(channel.noise_mean)})/'
                       f'{_show(channel.noise_floor)}', words.number(row.z, 2), row.z,
             f'The cosine’s distance from what is unremarkable, in noise floors ({how}).', z),
        Step('Printed gate', 'conf',
             f'confidence = erf(z/√2) = erf({above}/√2) {"≥" if row.passes_gate else "<"} {words.gate_words(channel)}',
             words.confidence(row.confidence), row.confidence,
             f'How often noise would come less far, if it were {noise}; the song '
             f'{"passes" if row.passes_gate else "does not pass"} ({role}).', confidence)]


def _share(key: str, channel: ChannelReport, row: SongRow) -> Step:
    counted = [other.weight for other in channel.rows if channel.calibrated or other.qualified]
    total = math.fsum(sorted(counted))
    of = 'all songs' if channel.calibrated else 'the songs that qualify'
    if row.qualified and total > 0:
        formula = f'share = w/Σw = {_show(row.weight)}/{_show(total)}, Σw over {of}'
        meaning = f'Of the {words.channel_words(key).money}, {words.percent(row.share)} goes to this song'
        if words.between(row):
            meaning += f'; with other parts of the music and other checkpoints, {words.between(row)}'
        return Step('Share', 'share', formula, words.percent(row.share), row.share, meaning + '.', row.weight / total)
    missing = ' and '.join(_missing(channel, row)) or 'nobody’s weight'
    return Step('Share', 'share', f'share = 0, for want of {missing}', words.percent(row.share), row.share,
                'Only songs that pass the deciding gate with an STS above 1 are paid.', 0.)


def _missing(channel: ChannelReport, row: SongRow) -> tp.List[str]:
    """What a song lacks to qualify."""
    passes = row.passes_calibrated_gate if channel.calibrated else row.passes_gate
    gate = 'q at or below the rate' if channel.calibrated else 'confidence'
    return [*([] if passes else [gate]), *([] if row.weight > 0 else ['an STS above 1'])]


def _show(value: float) -> str:
    """Four digits, with a true minus sign."""
    return f'{value:.4g}'.replace('-', '−')


# -- in words -----------------------------------------------------------------------------------------------------


def why(key: str, channel: ChannelReport, row: SongRow, silent: bool = False) -> str:
    """Why a song of a report is paid in a channel, or is not: one sentence for its owner."""
    money, name = words.channel_words(key).money, words.song(row)
    if row.share > 0:
        return (f'{name} is paid {words.percent(row.share)} of the {money}: its score lies {_apart(row)} of all '
                f'{channel.songs:,} songs, and {_passed(channel, row)}.')
    begin = f'{name} is paid nothing of the {money}'
    if silent:
        return f'{begin}, because the music that was attributed is silent.'
    if channel.songs < statistics.MIN_SONGS:
        return f'{begin}, because {words.count(channel.songs, "song")} cannot be told apart; that takes at least 3.'
    if len({other.score for other in channel.rows}) == 1:
        return f'{begin}, because all songs have the same score, so that none stands out.'
    failed = _failed(channel, row)
    if row.weight > 0:
        return f'{begin}, because its likeness cannot be told from chance: {failed}.'
    also = f'; nor would the gate let it through, for {failed}' if failed else ''
    return (f'{begin}, because it does not stand out: its score lies {_apart(row)}, where more than 1 above it is '
            f'asked for{also}.')


def _apart(row: SongRow) -> str:
    return (f'{words.number(abs(row.sts), 2)} standard deviations {"above" if row.sts >= 0 else "below"} the '
            "catalogue’s mean")


def _passed(channel: ChannelReport, row: SongRow) -> str:
    if channel.calibrated and row.p_value is not None:
        return f'music that owes nobody comes as close to a song no more than {_once(row.p_value)} comparisons'
    return (f'its confidence of {words.confidence(row.confidence)} reaches the {words.gate_words(channel)} that the '
            'gate asks for')


def _failed(channel: ChannelReport, row: SongRow) -> str:
    """Why the deciding gate holds a song back; empty where it does not."""
    if channel.calibrated and row.p_value is not None and row.q_value is not None and channel.calibration is not None:
        if row.q_value <= channel.calibration.rate:
            return ''
        often = ('most music that owes nobody comes closer to a song' if row.p_value > 0.5 else
                 f'music that owes nobody comes as close to a song {_once(row.p_value)} comparisons')
        return (f'{often}, and {channel.songs:,} songs were compared (q is {words.number(row.q_value, 2)}, where at '
                f'most {channel.calibration.rate:g} passes)')
    if row.passes_gate:
        return ''
    return (f'its confidence is {words.confidence(row.confidence)}, where the gate asks for '
            f'{words.gate_words(channel)}')


def _once(p: float) -> str:
    return 'once in' + words.odds(p).removeprefix(f'1{words.NBSP}in')


def _other_reading(report: AttributionReport, key: str, row: SongRow) -> str:
    """What a continuation's other reading pays the song."""
    other = report.other_reading
    if other is None or key not in other.channels:
        return ''
    same = next((one for one in other.channels[key].rows if one.track_id == row.track_id), None)
    if same is None:
        return ''
    paid = f'it is paid {words.percent(same.share)}' if same.share > 0 else 'it is paid nothing'
    return f'With the prompt {"counted" if other.prompt_counted else "left out"}, {paid}.'


# -- songs that were not compared ---------------------------------------------------------------------------------


def _absent(report: AttributionReport, track: str, store: tp.Optional['FingerprintStore']) -> Explanation:
    """A song that the report holds no numbers of."""
    if store is not None:
        known = _in_store(report, track, store)
        if known is not None:
            return known
    titles = {row.track_id: row.title for row in next(iter(report.channels.values())).rows}
    if store is not None:
        titles |= {record.id: record.title or record.id for record in store.tracks}
    found = nearest(track, titles)
    answer = f'“{words.clean(track)}” is not among the {report.store.songs:,} songs that this report compared'
    answer += (f', nor in the store {words.clean(store.path.name)}.' if store is not None else
               '; name the store by --store to learn whether it was silent, unreadable, withdrawn or not ready yet.')
    if found:
        answer += ' Did you mean ' + ' or '.join(
            f'{name} (“{words.clean(title)}”)' if title != name else name for name, title in found) + '?'
    return Explanation(track, track, '', 'unknown', answer, [], found)


def _in_store(report: AttributionReport, track: str, store: 'FingerprintStore') -> tp.Optional[Explanation]:
    """What the store knows of a song that the report does not hold, by its id or its only title."""
    tombstone = store.withdrawn.get(track)
    if tombstone is not None:
        answer = (f'“{words.clean(track)}” was withdrawn from the store on {tombstone.gone_on} '
                  f'({words.clean(tombstone.reason) or "no reason given"}), and is compared with nothing since then.')
        return Explanation(track, track, '', 'withdrawn', answer, [], [])
    slot = store.slot_if_any(track)
    titled = [record for record in store.tracks if record.title.casefold() == track.casefold()] if slot is None else []
    if slot is None and len(titled) != 1:
        return None
    record = titled[0] if slot is None else store.slots[slot]
    name = f'“{words.clean(record.title or record.id)}”'
    reason = f' ({words.clean(record.reason, 200)})' if record.reason else ''
    standing: Standing
    if record.status == 'silent':
        standing, answer = 'silent', (f'{name} is paid nothing, because its recording in the catalogue is '
                                      f'silent{reason}.')
    elif record.status != 'ok':
        standing, answer = 'unreadable', (f'{name} is paid nothing, because its recording could not be read{reason}: '
                                          'mend the file and run `lumina fingerprint … --update`.')
    else:
        later = ', or was added after this report was made' if store.hash != report.store.hash else ''
        standing, answer = 'waiting', (f'{name} is in the store, but was not fingerprinted at every checkpoint yet'
                                       f'{later}: run `lumina fingerprint … --update`, then attribute again.')
    return Explanation(record.id, record.title or record.id, record.artist, standing, answer, [], [])


def nearest(name: str, titles: tp.Mapping[str, str], count: int = SUGGESTIONS) -> tp.List[tp.Tuple[str, str]]:
    """Ids and titles of the songs whose id or title is most like `name`; none where nothing is.

    Args:
        titles (dict): Titles of songs by their ids.
    """
    by_word: tp.Dict[str, str] = {}
    for track_id, title in titles.items():
        by_word.setdefault(title.casefold(), track_id)
        by_word[track_id.casefold()] = track_id
    close = difflib.get_close_matches(name.casefold(), by_word, 2 * count, _ALIKE)
    ids = list(dict.fromkeys(by_word[word] for word in close))[:count]
    return [(track_id, titles[track_id]) for track_id in ids]
