"""docs/serving.md: its server under a real load, and its code and commands as they stand there."""

import asyncio
import re
import shlex
import shutil
import sys
import threading
import types
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from lumina_plugin.cli import main
from lumina_plugin.provenance import read_back
from lumina_plugin.report import AttributionReport

from .authority import Authority

DOCS = Path(__file__).resolve().parent.parent / 'docs'
PAGE = (DOCS / 'serving.md').read_text(encoding='utf-8')


def code_of(kind: str) -> str:
    (code,) = re.findall(rf'^```{kind}\n(.*?)^```$', PAGE, re.M | re.S)
    return code


@pytest.fixture
def server(project, tmp_path, monkeypatch):
    """The page's server.py, as a module of its own."""
    monkeypatch.setenv('MODEL', str(project.folder()))
    monkeypatch.setenv('OUT', str(tmp_path / 'served'))
    monkeypatch.setenv('WAITING', '3')
    module = types.ModuleType('server')
    monkeypatch.setitem(sys.modules, 'server', module)
    exec(compile(code_of('python server.py'), 'server.py', 'exec'), module.__dict__)  # noqa: S102
    return module


def test_the_server_generates_and_hands_out_audio_and_report(server, tmp_path):
    with TestClient(server.app) as client:
        made = client.post('/generate', json={'prompt': 'slow waltz', 'seconds': 0.6, 'seed': 3}).json()
        assert set(made['timings']) >= {'generate', 'fingerprint', 'score'}
        for key in ('P', 'M'):
            assert sum(made['paid'][key].values()) + made['unattributed'][key] == pytest.approx(1)
        folder = tmp_path / 'fetched'
        folder.mkdir()
        for name in ('audio.wav', 'report.json'):
            (folder / name).write_bytes(client.get(f"/clips/{made['clip']}/{name}").content)
        found = read_back(folder / 'audio.wav')
        assert found.fits and [source.name for source in found.sources] == ['the tags', 'the report']
        report = AttributionReport.load(folder / 'report.json')
        assert (report.query.prompt, report.query.seed, report.query.id) == ('slow waltz', 3, made['clip'])


def test_the_server_refuses_what_it_should(server, tmp_path):
    (tmp_path / 'secret.wav').write_text('secret')
    with TestClient(server.app) as client:
        for wanted in ({}, {'prompt': 'x' * 401}, {'prompt': 'x', 'seconds': 1e9}, {'prompt': 'x', 'seed': -1}):
            assert client.post('/generate', json=wanted).status_code == 422
        for name in ('0' * 32, '..%2f..', '%2e%2e', 'secret'):
            assert client.get(f'/clips/{name}/audio.wav').status_code in (404, 422)


def test_requests_are_served_in_turn_and_too_many_are_told_to_come_again(server):
    """With the worker held up, three requests find a place and two do not; nobody gets an error of the server's."""
    async def ask(client, seed):
        return await client.post('/generate', json={'prompt': 'slow waltz', 'seconds': 0.6, 'seed': seed}, timeout=300)

    async def crowd():
        go_on = threading.Event()
        async with server.lifespan(server.app):
            server.worker.submit(go_on.wait)
            transport = httpx.ASGITransport(server.app)
            async with httpx.AsyncClient(transport=transport, base_url='http://test') as client:
                asking = [asyncio.create_task(ask(client, seed)) for seed in range(5)]
                while sum(task.done() for task in asking) < 2:
                    await asyncio.sleep(0.01)
                go_on.set()
                answers = await asyncio.gather(*asking)
                last = await ask(client, 9)  # and all places are free again
        return answers, last

    answers, last = asyncio.run(asyncio.wait_for(crowd(), 600))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 503, 503]
    assert {answer.headers['Retry-After'] for answer in answers if answer.status_code == 503} == {'30'}
    assert len({answer.json()['clip'] for answer in answers if answer.status_code == 200}) == 3
    assert last.status_code == 200


def test_the_pages_program_runs(project, capsys):
    code = code_of('python').replace('outputs/xps/SIGNATURE', str(project.folder()))
    exec(compile(code, 'serving.md', 'exec'), {})  # noqa: S102
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out if 'generate' in line] == ['slow', 'fast', 'organ']


@pytest.mark.parametrize('page', ['serving', 'reports'])
def test_every_command_of_a_page_runs(page, project, tmp_path, monkeypatch, capsys):
    """With a model, songs and certificates of the tests in the place of the quickstart's."""
    text = (DOCS / f'{page}.md').read_text(encoding='utf-8')
    commands = re.findall(r'^    (lumina .*)$', text, re.M) + re.findall(r'`(lumina \w+ [^`]*--out [^`]*)`', text)
    assert len(commands) >= 4
    songs = tmp_path / 'outputs' / 'embedded' / 'audio'
    for name in ('train', 'heldout'):
        shutil.copytree(project.root / 'songs', songs / name)
    monkeypatch.chdir(tmp_path)
    authority = Authority(tmp_path)
    authority.signer('studio')
    authority.root.rename(tmp_path / 'roots.pem')
    monkeypatch.setattr('lumina_plugin.workflows.quickstart_run', lambda out='outputs': project.folder())
    generate = ['generate', '--prompt', 'slow waltz', '--out', 'outputs/generated']  # as the other page has it
    for argv in [*([generate] if page == 'reports' else []), *map(_argv, commands)]:
        main([*argv, *(['--seconds', '2', '--prompt-seconds', '0.5'] if argv[0] == 'generate' else [])])
        assert capsys.readouterr().out


def _argv(command: str) -> list:
    for theirs, ours in (('song-001', 'song-1'), ('--n 8', '--n 2'), ('--jobs 2', '--jobs 1')):
        command = command.replace(theirs, ours)
    return shlex.split(command)[1:]
