"""Methods against each other on a latent diffusion transformer: baselines against plain computations, the command."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from lumina_plugin.baselines import diffusion, lpips
from lumina_plugin.dit.ground_truth import FILE, DiTTruth, make_truth
from lumina_plugin.dit.objective import angle_time, noise, noisy
from lumina_plugin.dit.queries import LatentQuery, latent_decoded, latent_facts
from lumina_plugin.errors import LuminaError
from lumina_plugin.unlearning import compare
from lumina_plugin.unlearning.compare_diffusion import open_diffusion
from lumina_plugin.validation.black_boxes import BLACK_BOX

from .listening import write_clap, write_clews
from .test_dit_solver import Runs
from .tiny_dit import tiny_dit, tiny_examples

DRAWS = 3


@pytest.fixture(scope='module')
def dit():
    return tiny_dit()


@pytest.fixture(scope='module')
def songs(dit):
    """Three songs, the last of two windows of unlike length."""
    some = tiny_examples(dit, 4)
    return [*(LatentQuery(one.id, [one], one.id) for one in some[:2]), LatentQuery('two', some[2:], 'two')]


@pytest.fixture(scope='module')
def queries(dit):
    return [LatentQuery(f'q{i}', [dataclasses.replace(one, text=None)])
            for i, one in enumerate(tiny_examples(dit, 2, seed=5))]


# -- what goes on inside ----------------------------------------------------------------------------------------------

@torch.no_grad()
def asked_alone(dit, example, draw, module, inputs=False):
    """What comes out of (or goes into) a module for one window at one draw, [T, D], and v, [T, C]; by a hook."""
    eps = noise(draw, 0, *example.latents.shape)[None]
    t = torch.tensor([angle_time(draw, 0)])
    x, v = noisy(example.latents[None], eps, t)
    found = []
    hook = module.register_forward_hook(lambda _, given, out: found.append(given[0] if inputs else out))
    try:
        dit.denoiser(x, t, dit.conditions([example]))
    finally:
        hook.remove()
    return found[0][0, 1:], v[0].T  # the first place is the global condition's


def test_profiles_are_unit_activations_of_every_block_and_draw_averaged_over_music(dit, songs):
    found = diffusion.latent_profiles(dit, DRAWS)(songs, False)
    blocks = list(dit.transformer.transformer_blocks)
    assert len(found) == DRAWS * len(blocks)
    for draw in range(DRAWS):
        for layer, block in enumerate(blocks):
            for place, song in enumerate(songs):
                rows = []
                for one in song.examples:
                    plain = dataclasses.replace(one, text=None)
                    activations, _ = asked_alone(dit, plain, draw, block)
                    rows.append(torch.nn.functional.normalize(activations[:one.valid_frames].double(), dim=1))
                wanted = torch.cat(rows).mean(0)  # frames of all windows count the same
                np.testing.assert_allclose(found[draw * len(blocks) + layer][place], wanted, atol=1e-6)


def test_lpips_puts_a_song_first_that_is_the_query(dit, songs):
    method = diffusion.latent_lpips(dit, songs, DRAWS)
    found = method.scores(songs, False)[lpips.CHANNEL]
    assert (found.argmax(1) == np.arange(3)).all() and np.allclose(found.mean(1), 0)
    longer = diffusion.latent_profiles(dit, DRAWS + 1)(songs, False)
    shorter = diffusion.latent_profiles(dit, DRAWS)(songs, False)
    for one, other in zip(shorter, longer, strict=False):
        np.testing.assert_allclose(one, other)
    assert method.facts != diffusion.latent_lpips(dit, songs, DRAWS + 1).facts


def test_the_control_looks_at_no_query(songs, queries):
    found = diffusion.Calmness(songs).scores(queries, False)[BLACK_BOX]
    music = [torch.cat([one.latents[:, :one.valid_frames] for one in song.examples], 1).double() for song in songs]
    np.testing.assert_allclose(found, [[-float(one.var(correction=0)) for one in music]] * len(queries))


def test_what_lies_behind_the_music_does_not_enter_its_weights(dit, queries):
    """Statistics see no padding at all; profiles count none of its frames."""
    example = dataclasses.replace(queries[0].examples[0], valid_frames=10)
    padded = example.latents.clone()
    padded[:, 10:] = 7.
    a, b = (LatentQuery('x', [one], 'x') for one in (example, dataclasses.replace(example, latents=padded)))
    method = diffusion.LatentStatistics([a])
    np.testing.assert_array_equal(method._statistics(a, False), method._statistics(b, False))
    np.testing.assert_allclose(method._statistics(a, False)[:4], example.latents[:, :10].mean(1), atol=1e-6)


# -- representer points ---------------------------------------------------------------------------------------------

def gathered(dit, pieces, draws=DRAWS):
    """Features [n, D] and v [n, C] of all valid frames of all windows and draws, fp64."""
    features, wanted = [], []
    for piece in pieces:
        for one in piece.examples:
            for draw in range(draws):
                f, v = asked_alone(dit, one, draw, dit.transformer.proj_out, inputs=True)
                features.append(f[:one.valid_frames].double().numpy())
                wanted.append(v[:one.valid_frames].double().numpy())
    return np.concatenate(features), np.concatenate(wanted)


@pytest.mark.parametrize('targets', diffusion.TARGETS)
@pytest.mark.parametrize('ridge', [.003, 1.])
def test_a_query_is_the_sum_of_representers_of_a_direct_ridge_regression(dit, songs, queries, targets, ridge):
    method = diffusion.LatentRepresenters(dit, songs, DRAWS, ridge, targets)
    found = method.scores(queries, False)[diffusion.CHANNEL]
    f, v = gathered(dit, songs)
    n, channels = v.shape
    own = diffusion.output_map(dit).numpy()
    y = f @ own.T if targets == 'own' else v
    # a regression without closed forms of sums: least squares of stacked rows, the penalty among them
    rows = np.concatenate([f / np.sqrt(n * channels), np.sqrt(ridge) * np.eye(f.shape[1])])
    aims = np.concatenate([y / np.sqrt(n * channels), np.zeros((f.shape[1], channels))])
    fitted = np.linalg.lstsq(rows, aims, rcond=None)[0].T
    np.testing.assert_allclose(method.fitted.numpy(), fitted, rtol=1e-3, atol=1e-5)
    alpha = (y - f @ fitted.T) / (n * ridge * channels)
    np.testing.assert_allclose(alpha.T @ f, fitted, rtol=1e-4, atol=1e-6)  # the theorem itself
    bounds = np.cumsum([0, *(len(gathered(dit, [song])[0]) for song in songs)])
    for row, query in enumerate(queries):
        g, u = gathered(dit, [query])
        for column in range(len(songs)):
            part = slice(bounds[column], bounds[column + 1])
            said = (g @ f[part].T) @ alpha[part]  # [frames, C], of this song's frames alone
            assert found[row, column] == pytest.approx((said * u).mean(), rel=2e-3, abs=1e-6)
        assert found[row].sum() == pytest.approx((g @ fitted.T * u).mean(), rel=1e-3, abs=1e-6)


@torch.no_grad()
def test_the_output_map_is_what_the_model_does(dit, songs):
    example = songs[0].examples[0]
    features, _ = asked_alone(dit, example, 0, dit.transformer.proj_out, inputs=True)
    eps, t = noise(0, 0, *example.latents.shape)[None], torch.tensor([angle_time(0, 0)])
    said = dit.denoiser(noisy(example.latents[None], eps, t)[0], t, dit.conditions([example]))[0].T  # [T, C]
    np.testing.assert_allclose(features.double() @ diffusion.output_map(dit).T, said, atol=1e-4)


@pytest.mark.parametrize('keys', [{'ridge': 0.}, {'targets': 'codes'}])
def test_settings_of_representers_that_make_no_sense(dit, songs, keys):
    with pytest.raises(LuminaError, match='ridge above 0'):
        diffusion.LatentRepresenters(dit, songs, 2, **keys)


# -- queries --------------------------------------------------------------------------------------------------------

def test_sound_ends_with_the_music_and_facts_tell_queries_apart(dit, songs):
    hop = int(dit.vae.hop_length)
    assert len(latent_decoded(dit, songs[2], False)) == hop * sum(one.valid_frames for one in songs[2].examples)
    example = songs[0].examples[0]
    others = [dataclasses.replace(example, **keys) for keys in (
        {'text': 'x'}, {'seconds': 9.}, {'valid_frames': 3}, {'start': 1.}, {'latents': example.latents + 1})]
    facts = [json.dumps(latent_facts([LatentQuery('a', [one])])) for one in (example, *others)]
    assert len(set(facts)) == len(facts)


# -- the command ----------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def suite(tmp_path_factory):
    """A run with a store, and its ground truth by four halves."""
    runs = Runs(tmp_path_factory.mktemp('compare-diffusion'))
    runs.dora()
    run = runs.folder()
    work = runs.root / 'truth'
    truth = make_truth(run, runs.manifest, work, halves=4, each=2, draws=8)
    assert truth is not None
    # what is silent has no windows, which a real catalogue's truth does not name either
    kept = [song for song in truth.songs if song != 'silence']
    models = [dataclasses.replace(model, songs=tuple(song for song in model.songs if song != 'silence'))
              for model in truth.models]
    path = dataclasses.replace(truth, songs=kept, models=models).save(work / f'sounding-{FILE}')
    return run, path


def argv_of(suite, out, *more):
    return ['unlearn', 'compare', '--out', str(out), '--model', str(suite[0]), '--draws', '4', '--top', '3', *more]


NAMES = ['LUMINA dit', 'unlearning, published', 'unlearning, default', 'CLAP (small-clap, not the published network)',
         'CLEWS (a small random instance)', 'LPIPS', 'RPS', 'RPS, fitted to v', 'latent statistics', 'mel statistics',
         'calm latents, query unseen']


@pytest.mark.parametrize('family', ['free', 'heldout'])
def test_the_command(suite, tmp_path, capsys, family):
    from lumina_plugin.cli import main
    clap, clews = write_clap(tmp_path / 'small-clap'), write_clews(tmp_path / 'clews')
    argv = argv_of(suite, tmp_path, '--truth', str(suite[1]), '--baselines', f'clap={clap},clews={clews}', '--family',
                   family)
    main(argv)
    printed = capsys.readouterr().out
    assert printed.startswith(f'2 queries ({family}) against 6 songs') and '4 fixed draws' in printed
    assert '| method | LDS |' in printed and 'leave out' not in printed and 'nan' not in printed
    told = json.loads((tmp_path / 'compare' / 'compare.json').read_text())
    assert told['agreements']['methods'] == NAMES and set(told['truths']) == set(NAMES)
    assert told['facts']['draws'] == 4 and told['facts']['run'] == suite[0].name
    for name in ('compare.png', 'concentration.png'):
        assert (tmp_path / 'compare' / name).read_bytes().startswith(b'\x89PNG')
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / 'kept').rglob('*.safetensors')}
    assert len(kept) == len(NAMES)
    main(argv)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'kept').rglob('*.safetensors')} == kept
    assert capsys.readouterr().out == printed


def test_lds_is_of_the_truths_own_losses(suite, tmp_path):
    """The scores that say what the retrainings said, song by song, are the best there are."""
    from scipy import stats
    setting = open_diffusion(compare.Asked(tmp_path, str(suite[0]), suite[1]))
    queries = setting.queries('heldout', 0)
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(len(queries), len(setting.ids)))
    truth = DiTTruth.load(suite[1])
    columns = truth.columns('heldout')
    wanted = []
    for row, column in enumerate(columns):
        foretold = [sum(scores[row, setting.ids.index(song)] for song in model.songs) for model in truth.models]
        wanted.append(stats.spearmanr(foretold, -truth.losses[:, column].mean(-1)).statistic)
    found = setting.truths('heldout', False, {'x': scores})['x']['LDS']
    assert found.mean == pytest.approx(np.mean(wanted))


def test_without_a_truth_and_without_a_store(suite, tmp_path, capsys, caplog):
    """Free generations are made; what the run lacks is left out, and the command that makes it is named."""
    from lumina_plugin.cli import main
    run = tmp_path / suite[0].name
    shutil.copytree(suite[0], run)
    for manifest in (run / 'lumina').glob('*/manifest.json'):
        shutil.rmtree(manifest.parent)
    main(argv_of((run, None), tmp_path / 'out', '--count', '2'))
    printed = capsys.readouterr().out
    assert printed.startswith('2 queries (free) against 6 songs') and 'LDS' not in printed and 'LUMINA' not in printed
    assert f'dora run -f {run.name} execute_only=fingerprint' in caplog.text
    setting = open_diffusion(compare.Asked(tmp_path, str(run)))
    first, again = (setting.queries('free', 2) for _ in range(2))
    assert latent_facts(first) == latent_facts(again)


@pytest.mark.parametrize('argv, words', [
    (['--family', 'continued'], 'A diffusion continues nothing'), (['--whole'], '--whole is about the prompts'),
    (['--family', 'heldout'], 'name one by --truth'), (['--truth', 'nowhere'], 'cannot be read as a ground truth'),
    (['--truth', 'OTHER'], 'is of another model'), (['--truth', 'FEWER'], 'is of 5 songs'),
    (['--channel', 'Q'], 'P + M, P, M'), (['--baselines', 'clap=nowhere/at/all'], 'There is no CLAP')])
def test_bad_input_is_one_sentence(suite, tmp_path, capsys, monkeypatch, argv, words):
    from lumina_plugin.cli import main
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    truth = DiTTruth.load(suite[1])
    others = {'OTHER': dataclasses.replace(truth, facts={**truth.facts, 'model': 'f' * 64}),
              'FEWER': dataclasses.replace(truth, songs=truth.songs[:-1], models=[])}
    given = [str(others[one].save(tmp_path / f'{one}.safetensors')) if one in others else one for one in argv]
    with pytest.raises(SystemExit) as stop:
        main(argv_of(suite, tmp_path, *given))
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and words in told


def test_draws_belong_to_what_is_kept(suite, tmp_path):
    settings = [open_diffusion(compare.Asked(tmp_path, str(suite[0]), draws=draws)) for draws in (2, 4)]
    facts = [{method.name: json.dumps(compare.facts_of(method)) for method in one.methods()} for one in settings]
    same = {name for name in facts[0] if facts[0][name] == facts[1][name]}
    assert same == {'LUMINA dit', 'latent statistics', 'mel statistics', 'calm latents, query unseen'}
