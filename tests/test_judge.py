"""Methods against a ground truth: what they score, what the table says of them."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from lumina_plugin.attribution import Attributor
from lumina_plugin.catalogue_pass import run_songs
from lumina_plugin.errors import LuminaError
from lumina_plugin.models import load_musicgen, run_stores
from lumina_plugin.validation.black_boxes import CodeHistogram, PlayingTime, Random
from lumina_plugin.validation.ground_truth import make_ground_truth
from lumina_plugin.validation.judge import FAMILIES, judge
from lumina_plugin.validation.methods import BOTH, Fingerprints, Method
from lumina_plugin.validation.plan import plan_models


@pytest.fixture(scope='module')
def suite(project, tmp_path_factory):
    """A run, its ground truth with four halves, and its model."""
    run = project.folder()
    songs = run_songs(run)
    sounding = [track for track in songs if track.id != 'silence']
    catalogue = type(songs)(sounding, songs.source)
    plan = plan_models(catalogue, halves=4, seeds=1, whole=0, groups=0)
    truth = make_ground_truth(run, project.manifest, tmp_path_factory.mktemp('truth'), plan=plan, each=2, seconds=1.)
    place = [column for column, query in enumerate(truth.queries) if query.source != 'silence']
    queries = [truth.queries[column] for column in place]
    kept = dataclasses.replace(truth, songs=[track.id for track in sounding], queries=queries,
                               sums=truth.sums[:, place], counts=truth.counts[place])
    return run, kept, load_musicgen(run)


def test_a_stores_scores_are_those_of_its_reports(suite):
    run, truth, musicgen = suite
    method = Fingerprints(musicgen, run_stores(run)[0], truth.songs)
    query = next(query for query in truth.queries if query.family == 'free')
    scores = method.scores([query], masked=False)
    report = Attributor(musicgen.lm, musicgen.compression_model, run_stores(run)[0]).attribute_codes(query.codes)
    for channel in ('P', 'M'):
        by_song = {row.track_id: row.score for row in report.channels[channel].rows}
        np.testing.assert_allclose(scores[channel][0], [by_song[song] for song in truth.songs], rtol=1e-4, atol=1e-6)
    both = sum((scores[c][0] - scores[c][0].mean()) / scores[c][0].std() for c in ('P', 'M'))
    np.testing.assert_allclose(scores[BOTH][0], both, atol=1e-9)


def test_a_prompt_is_masked_where_that_is_asked_for(suite):
    run, truth, musicgen = suite
    method = Fingerprints(musicgen, run_stores(run)[0], truth.songs)
    continued = [query for query in truth.queries if query.family == 'continued']
    assert not np.allclose(method.scores(continued, True)['M'], method.scores(continued, False)['M'])


def test_every_method_is_judged_on_every_family(suite, tmp_path):
    run, truth, musicgen = suite
    songs = [query for query in truth.queries if query.family == 'songs']
    methods = [Fingerprints(musicgen, run_stores(run)[0], truth.songs, known=songs),
               Fingerprints(musicgen, run_stores(run)[0], truth.songs, 'kernel'), CodeHistogram(songs, 16),
               PlayingTime(truth.songs, range(len(truth.songs))), Random(truth.songs)]
    table = judge(truth, methods)
    assert [(row.method, row.channel) for row in table.rows] == [
        *(('default', channel) for channel in ('P', 'M', BOTH)),
        *(('default, kernel', channel) for channel in ('P', 'M', BOTH)),
        ('code histogram', 'black box'), ('share of playing time', 'black box'), ('random', 'black box')]
    assert table.rows[0].bytes_per_song == 2 * 2 * 512 * 4 and table.rows[0].seconds_per_song > 0
    assert table.rows[3].seconds_per_song is None
    for row in table.rows:
        assert set(row.lds) == {title for _, _, title in FAMILIES}
        assert all(-1 <= one.low <= one.mean <= one.high <= 1 for one in row.lds.values())
    folder = table.save(tmp_path)
    assert json.loads((folder / 'lds.json').read_text())['rows'][0]['method'] == 'default'
    assert (folder / 'lds.png').read_bytes().startswith(b'\x89PNG') and '| random |' in (folder / 'lds.md').read_text()


class Oracle(Method):
    """Knows the influence that made the losses."""

    def __init__(self, songs, influence):
        super().__init__('oracle', songs)
        self.influence = influence

    def _scores(self, queries, masked):
        return {'x': np.stack([self.influence[query.id] for query in queries])}

    def _per_song(self):
        return 0., None


def test_the_method_that_knows_scores_one(suite):
    _, truth, _ = suite
    rng = np.random.default_rng(0)
    influence = {query.id: rng.normal(size=len(truth.songs)) for query in truth.queries}
    members = truth.members(range(len(truth.models)))
    losses = 50 - members @ np.stack([influence[query.id] for query in truth.queries]).T  # [M, Q]
    sums = torch.tensor(np.stack([losses * 0 + losses, losses], -1))[..., None] * truth.counts[None]
    made = dataclasses.replace(truth, sums=sums)
    row = judge(made, [Oracle(truth.songs, influence)]).rows[0]
    assert all(one.mean == pytest.approx(1.) for one in row.lds.values())


def test_songs_in_another_order_are_refused(suite):
    _, truth, _ = suite
    with pytest.raises(LuminaError, match='another order'):
        judge(truth, [Random(truth.songs[::-1])])


def test_a_store_without_a_song_is_refused(suite):
    run, truth, musicgen = suite
    with pytest.raises(LuminaError, match='no fingerprint of stranger'):
        Fingerprints(musicgen, run_stores(run)[0], [*truth.songs, 'stranger'])


def test_the_commands(suite, project, tmp_path, capsys):
    from lumina_plugin.cli import main
    run, truth, _ = suite
    made = dataclasses.replace(truth, facts={**truth.facts, 'run': run.name})
    made.save(tmp_path / 'truth' / 'ground_truth.safetensors')
    main(['validate', 'lds', '--out', str(tmp_path), '--model', str(run), '--score', 'dot'])
    printed = capsys.readouterr().out
    assert '| default, dot | P + M |' in printed and (tmp_path / 'lds' / 'lds.png').is_file()


def test_peers_join_the_table(suite, peers, tmp_path, capsys):
    from lumina_plugin.cli import main
    run, truth, _ = suite
    made = dataclasses.replace(truth, facts={**truth.facts, 'run': run.name})
    made.save(tmp_path / 'truth' / 'ground_truth.safetensors')
    main(['validate', 'lds', '--out', str(tmp_path), '--model', str(run), '--peers'])
    printed = capsys.readouterr().out
    for name in ('TRAK (dattri)', 'LoGra (dattri)', 'EK-FAC (kronfluence)', 'TracIn'):
        for channel in ('P', 'M', 'P + M'):
            assert f'| {name} | {channel} | ' in printed
    assert '| mel statistics | black box |' in printed and 'nan' not in printed


@pytest.mark.parametrize('argv, words', [
    (['ground-truth', '--part', '3/2'], 'K/N'), (['ground-truth', '--part', '1/2'], '--part 0/2 first'),
    (['ground-truth', '--model', 'RUN'], '--heldout'),
    (['ground-truth', '--model', 'facebook/musicgen-small', '--heldout', 'x'], 'no dora run'),
    (['lds'], 'lumina validate ground-truth')])
def test_bad_input_is_one_sentence(suite, tmp_path, capsys, argv, words):
    from lumina_plugin.cli import main
    argv = [str(suite[0]) if word == 'RUN' else word for word in argv]
    with pytest.raises(SystemExit) as stop:
        main(['validate', *argv, '--out', str(tmp_path)])
    assert stop.value.code == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith('Error: ') and words in told and len(told.splitlines()) == 1
