"""The record that travels: who is credited, by which report, for which sound."""

import hashlib
import json
import math
import typing as tp
from pathlib import Path

import pydantic
from pydantic import Field

from ..atomic import write_atomic
from ..errors import LuminaError
from ..report import words
from ..report.schema import AttributionReport

FORMAT: tp.Literal[1] = 1
CREDITED = 5  # songs per channel; the others are counted together
SUFFIX = '.lumina.json'
_LONGEST = 200  # characters of a title or name
_Fraction = tp.Annotated[float, Field(ge=0, le=1 + 1e-6)]


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra='forbid', frozen=True, allow_inf_nan=False, protected_namespaces=())


class Credit(_Part):
    """A song and its share of a channel."""
    track_id: str
    title: str
    artist: str = ''
    isrc: tp.Optional[str] = None
    iswc: tp.Optional[str] = None
    share: _Fraction


class ChannelCredits(_Part):
    """How one channel divides: the first songs, what the `others` get together, and the remainder."""
    credits: tp.List[Credit] = Field(max_length=CREDITED)
    others: _Fraction = 0.
    unattributed: _Fraction


class Attribution(_Part):
    """What a report says, as far as a tag can hold it.

    Attributes:
        title: of the audio, in words. created: when it was attributed.
        report_sha256: of the canonical report (`report_sha256`).
        content_sha256: of the sound itself (`sound.content_sha256`); absent where there is no audio file.
        model, recipe, store: names. store_hash: of the fingerprints.
        channels: by channel's key.
    """
    format: tp.Literal[1] = FORMAT
    lumina_version: str
    title: str
    kind: tp.Literal['generation', 'continuation', 'file']
    created: pydantic.AwareDatetime
    report_sha256: str = Field(pattern='^[0-9a-f]{64}$')
    content_sha256: tp.Optional[str] = Field(None, pattern='^[0-9a-f]{64}$')
    model: str
    recipe: str
    store: str
    store_hash: str
    channels: tp.Dict[str, ChannelCredits] = Field(min_length=1)

    def text(self) -> str:
        """One line of JSON, as tags hold it."""
        return self.model_dump_json(exclude_none=True)

    def sentence(self) -> str:
        """Who is credited, for a tag that people read."""
        return 'Attributed by LUMINA. ' + ' '.join(_divided(key, part) for key, part in self.channels.items())

    def save_beside(self, audio: tp.Union[str, Path]) -> Path:
        """Write the sidecar of an audio file, atomically. Raises LuminaError where the folder cannot be written."""
        return write_atomic(sidecar_path(audio), self.model_dump_json(indent=2, exclude_none=True) + '\n')

    @classmethod
    def parse(cls, text: tp.Union[str, bytes], where: str) -> 'Attribution':
        """A record from its JSON. Raises LuminaError naming `where` it is from and what is wrong with it."""
        try:
            return cls.model_validate_json(text)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            place = '.'.join(map(str, first['loc'])) or 'record'
            raise LuminaError(f"The attribution in {where} is damaged: '{place}' {first['msg'][:1].lower()}"
                              f"{first['msg'][1:]}; attribute the audio again.") from None


def _divided(key: str, part: ChannelCredits) -> str:
    shares = [f'{_plain(credit.share)} {words.clean(credit.title, _LONGEST)}'
              + (f' by {words.clean(credit.artist, _LONGEST)}' if credit.artist else '') for credit in part.credits]
    if part.others > 0:
        shares.append(f'{_plain(part.others)} other songs')
    shares.append(f'{_plain(part.unattributed)} unattributed')
    return f'{words.channel_words(key).money.capitalize()}: {"; ".join(shares)}.'


def _plain(fraction: float) -> str:
    return words.percent(fraction).replace(words.NBSP, ' ')


def sidecar_path(audio: tp.Union[str, Path]) -> Path:
    """song.wav -> song.wav.lumina.json"""
    return Path(audio).with_name(Path(audio).name + SUFFIX)


def report_sha256(report: tp.Union[AttributionReport, tp.Mapping[str, tp.Any]]) -> str:
    """SHA-256 of a report's canonical JSON: keys sorted, no spaces, UTF-8, without `query.sha256`.

    That one is the hash of an audio file whose tags hold this very hash. A report that was read from a file is given as
    the JSON in it, so that its hash does not depend on the version that reads it.
    """
    data = json.loads(report.model_dump_json()) if isinstance(report, AttributionReport) else dict(report)
    query = {key: value for key, value in data.get('query', {}).items() if key != 'sha256'}
    text = json.dumps({**data, 'query': query}, sort_keys=True, separators=(',', ':'), ensure_ascii=False)
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()


def attribution_of(report: AttributionReport, content_sha256: tp.Optional[str] = None) -> Attribution:
    """The record of a report, for the audio whose sound has that hash."""
    return Attribution(
        lumina_version=report.lumina_version, title=words.headline(report), kind=report.query.kind,
        created=report.created, report_sha256=report_sha256(report), content_sha256=content_sha256,
        model=report.model.id, recipe=report.recipe.name, store=report.store.name, store_hash=report.store.hash,
        channels={key: _credits(channel) for key, channel in report.channels.items()})


def _credits(channel: tp.Any) -> ChannelCredits:
    paid = words.paid(channel)
    credits = [Credit(track_id=row.track_id, title=row.title[:_LONGEST], artist=row.artist[:_LONGEST], isrc=row.isrc,
                      iswc=row.iswc, share=row.share) for row in paid[:CREDITED]]
    return ChannelCredits(credits=credits, others=math.fsum(row.share for row in paid[CREDITED:]),
                          unattributed=channel.unattributed)
