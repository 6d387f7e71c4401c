"""The page over a real server and Gradio's own client."""

import gradio_client
import pytest


def test_page_generates_and_attributes(studio, project, tmp_path):
    from lumina_plugin.web import build_page
    page = build_page(studio)
    _, address, _ = page.launch(server_name='127.0.0.1', server_port=None, prevent_thread_lock=True, quiet=True)
    try:
        client = gradio_client.Client(address, verbose=False, download_files=str(tmp_path))
        song = gradio_client.handle_file(str(project.root / 'songs' / 'song-3.wav'))
        composition, production, notes, html = client.predict(song, api_name='/attribute')
        assert composition['data'][0][0] == production['data'][0][0] == 'song-3'
        assert composition['data'][-1][0] == 'unattributed' and html.endswith('report.html')
        audio, *rest = client.predict('slow waltz', None, 4, 7, api_name='/generate')
        assert audio.endswith('.wav') and len(rest) == 4
        with pytest.raises(Exception, match='choose a recording'):
            client.predict(None, api_name='/attribute')
    finally:
        page.close()
