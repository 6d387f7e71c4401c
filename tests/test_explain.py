"""One song's numbers, traced: each follows from the others, in the formula that is printed, and every song gets an
answer."""

import dataclasses
import json
import math
import re
import shutil

import pytest

from lumina_plugin.cli import main
from lumina_plugin.errors import LuminaError
from lumina_plugin.explain import Explanation, explain, nearest
from lumina_plugin.report import AttributionReport
from lumina_plugin.statistics import Gate
from lumina_plugin.store import FingerprintStore
from lumina_plugin.store.records import TrackRecord

from .test_report import calibrated, report, sample, songs  # noqa: F401  (fixtures)

NAMES = dict(tanh=math.tanh, erf=math.erf, max=max, sqrt2=math.sqrt(2))


def computed(formula: str) -> float:
    """What the last numbers of a printed formula give: '… = (0.2452 − 0.09598)/0.07431' -> 2.008."""
    last = re.split(r' [<>≥≤]|, (?=where|Σ)', formula)[0].split(' = ')[-1]
    for old, new in (('−', '-'), ('·', '*'), ('√2', 'sqrt2'), (')²', ')**2')):
        last = last.replace(old, new)
    return float(eval(re.sub(r'(?<=\d),(?=\d{3})', '', last), {'__builtins__': {}}, NAMES))  # noqa: S307


def every_song(one: AttributionReport):
    return [explain(one, row.track_id) for row in next(iter(one.channels.values())).rows]


def expect_all_follow(found: Explanation) -> None:
    for part in found.channels:
        for step in part.steps:
            assert step.follows, (found.track_id, part.key, step)


def expect_formulas_hold(found: Explanation) -> None:
    """With the four digits that are shown."""
    for part in found.channels:
        numbers = {step.name: step for step in part.steps}
        sts, z = numbers['STS'].number, numbers['z'].number
        assert computed(numbers['STS'].formula) == pytest.approx(sts, rel=0.01, abs=0.02)
        assert computed(numbers['LIP %'].formula) == pytest.approx(numbers['LIP %'].number, abs=0.05)
        assert computed(numbers['Weight'].formula) == pytest.approx(numbers['Weight'].number, rel=0.01, abs=0.001)
        assert computed(numbers['z'].formula) == pytest.approx(z, rel=0.01, abs=0.02)
        assert computed(numbers['Printed gate'].formula) == pytest.approx(numbers['Printed gate'].number, abs=0.001)
        for name in {'Chance', 'Calibrated gate'} & set(numbers):
            assert computed(numbers[name].formula) == pytest.approx(numbers[name].number, rel=0.002)
        if part.paid:
            assert computed(numbers['Share'].formula) == pytest.approx(part.share, rel=0.002)


def test_every_number_of_every_song_follows_and_is_what_its_formula_gives(report, calibrated):  # noqa: F811
    for one in (report, calibrated):
        for found in every_song(one):
            expect_all_follow(found)
            expect_formulas_hold(found)
            assert [part.share for part in found.channels] == [
                next(row.share for row in channel.rows if row.track_id == found.track_id)
                for channel in one.channels.values()]


def test_the_numbers_of_a_real_report_follow(studio, project):
    made = studio.attribute(project.root / 'songs' / 'song-3.wav')
    for found in every_song(made):
        expect_all_follow(found)
        expect_formulas_hold(found)
        names = [step.name for step in found.channels[0].steps]
        assert names == ['Cosine', 'Score', 'STS', 'LIP %', 'Weight', 'Chance', 'Calibrated gate', 'z', 'Printed gate',
                         'Share']
        assert 'epoch-0002, epoch-0004' in found.channels[0].steps[0].formula


def test_a_number_that_does_not_follow_is_found_out(report, tmp_path, capsys):  # noqa: F811
    rows = list(report.channels['P'].rows)
    rows[4] = rows[4].model_copy(update={'sts': rows[4].sts + 0.5})
    changed = report.model_copy(update={'channels': {
        **report.channels, 'P': report.channels['P'].model_copy(update={'rows': rows})}})
    steps = {step.name: step for step in explain(changed, rows[4].track_id, 'P').channels[0].steps}
    assert not steps['STS'].follows and not steps['Weight'].follows and steps['z'].follows
    main(['explain', str(changed.save(tmp_path / 'r.json')), '--track', rows[4].track_id, '-c', 'P'])
    assert 'it has been changed' in capsys.readouterr().out


def why_of(one: AttributionReport, key: str, wanted) -> str:
    row = next(row for row in one.channels[key].rows if wanted(row))
    return explain(one, row.track_id, key).channels[0].answer


def test_the_answer_names_the_reason(report, calibrated):  # noqa: F811
    paid = why_of(report, 'P', lambda row: row.share > 0)
    assert 'is paid' in paid and 'confidence' in paid and 'standard deviations above' in paid
    assert 'comes as close to a song no more than once in' in why_of(calibrated, 'P', lambda row: row.share > 0)
    chance = why_of(calibrated, 'P', lambda row: row.weight > 0 and not row.qualified)
    assert 'cannot be told from chance' in chance and '97 songs were compared' in chance and '0.05 passes' in chance
    lenient = why_of(sample(gate=Gate(0.01)), 'M', lambda row: row.weight == 0 and row.passes_gate)
    assert 'does not stand out' in lenient and 'nor would' not in lenient
    far = why_of(report, 'M', lambda row: row.sts < 0)
    assert 'below the catalogue’s mean' in far and 'nor would the gate' in far


def test_degenerate_reports_have_answers_too(report):  # noqa: F811
    few = sample(songs(2), mixes=({0: 1.}, {1: 1.}), query={'prompt_song_id': None})
    assert 'takes at least 3' in explain(few, 'song_001', 'P').answer
    rows = [row.model_copy(update={'score': 0., 'sts': 0., 'weight': 0., 'share': 0., 'qualified': False})
            for row in report.channels['P'].rows]
    flat = report.channels['P'].model_copy(update={'rows': rows, 'unattributed': 1., 'qualified': 0})
    found = explain(report.model_copy(update={'channels': {'P': flat}}), 'song_003')
    assert 'the same score' in found.answer and not found.channels[0].paid


def test_the_other_reading_of_a_continuation_is_told(report):  # noqa: F811
    from lumina_plugin.report.schema import OtherReading
    both = report.model_copy(update={'other_reading': OtherReading(prompt_counted=True, channels=report.channels)})
    paid = next(row for row in report.channels['M'].rows if row.share > 0)
    assert explain(both, paid.track_id, 'M').channels[0].note.startswith('With the prompt counted, it is paid')


def test_a_song_may_be_named_by_its_only_title(report):  # noqa: F811
    row = report.channels['P'].rows[7]
    assert explain(report, row.title.upper()).track_id == row.track_id
    twice = [dataclasses.replace(song, title='Twice') for song in songs(6)]
    assert explain(sample(twice, mixes=({0: 1.}, {1: 1.}), query={'prompt_song_id': None}),
                   'twice').standing == 'unknown'


def test_near_names_are_suggested():
    titles = {'song-003': 'Harbour Lights', 'song-004': 'Orchard', 'x': '<script>'}
    assert nearest('song-03', titles)[0] == ('song-003', 'Harbour Lights')
    assert nearest('harbor light', titles) == [('song-003', 'Harbour Lights')]
    assert nearest('zzzz', titles) == []


@pytest.fixture
def changed_store(project, tmp_path):
    """A copy of the project's store: one song withdrawn, one waiting, one that could not be read."""
    shutil.copytree(project.folder() / 'lumina' / 'default', tmp_path / 'store')
    store = FingerprintStore.open(tmp_path / 'store')
    store.withdraw(['song-5'], 'opted out')
    store.add_tracks([TrackRecord(id='late', title='Late Arrival', sha256='ab' * 32),
                      TrackRecord(id='torn', title='Torn', sha256='cd' * 32, status='skipped', reason='no audio')])
    return FingerprintStore.open(tmp_path / 'store')


def test_songs_that_were_not_compared_are_told_why(studio, project, changed_store):
    made = studio.attribute(project.root / 'songs' / 'song-3.wav')
    rest = {key: channel.model_copy(update={'rows': [row for row in channel.rows if row.track_id != 'song-5']})
            for key, channel in made.channels.items()}
    made = made.model_copy(update={'channels': rest})  # a report of the store after the withdrawal
    expected = {'silence': ('silent', 'silent'), 'song-5': ('withdrawn', 'opted out'),
                'torn': ('unreadable', 'no audio'), 'late': ('waiting', '--update'),
                'Late arrival': ('waiting', '--update')}
    for track, (standing, told) in expected.items():
        found = explain(made, track, store=changed_store)
        assert (found.standing, found.channels) == (standing, []) and told in found.answer, found
    unknown = explain(made, 'songg-3', store=changed_store)
    assert unknown.standing == 'unknown' and 'song-3' in unknown.answer and unknown.suggestions
    assert '--store' in explain(made, 'silence').answer
    with pytest.raises(LuminaError, match='it has P and M'):
        explain(made, 'song-1', 'X')


def test_the_command_explains_and_finds_the_store_of_the_run(studio, project, tmp_path, capsys, monkeypatch):
    studio.attribute(project.root / 'songs' / 'song-3.wav', tmp_path)
    monkeypatch.setenv('LUMINA_DORA_DIR', str(project.root / 'runs'))
    main(['explain', str(tmp_path), '--track', 'song-3'])
    out = capsys.readouterr().out
    assert 'STS = (r − μ)/sd' in out and out.count('Calibrated gate') == 2 and 'Publishing' in out.title()
    main(['explain', str(tmp_path / 'report.json'), '--track', 'silence'])
    assert 'is silent' in capsys.readouterr().out
    main(['explain', str(tmp_path), '--track', 'song-3', '--channel', 'M', '--json'])
    found = json.loads(capsys.readouterr().out)
    assert found['standing'] == 'compared' and [part['key'] for part in found['channels']] == ['M']
    monkeypatch.setenv('LUMINA_DORA_DIR', str(tmp_path))  # the run does not lie here
    main(['explain', str(tmp_path), '--track', 'silence'])
    assert '--store' in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(['explain', str(tmp_path / 'gone.json'), '--track', 'song-3'])
    assert stop.value.code == 2 and 'gone.json' in capsys.readouterr().err
