"""Measure the web page on this machine: how long until a browser shows it, and a generation with its attribution.

    python benchmarks/demo.py [--model outputs/xps/SIGNATURE] [--visits 5] [--users 10]

Takes a Chromium that is installed, as the tests do. Prints a table; nothing is kept.
"""

import concurrent.futures
import os
import shutil
import statistics
import time
import typing as tp

import typer
from all import processor  # benchmarks/all.py, which lies beside

SECONDS = 10


def paints(address: str, visits: int) -> tp.List[tp.Tuple[float, float]]:
    """Per visit with an empty cache, seconds to the first contentful paint, and until the button Generate is there."""
    from playwright.sync_api import sync_playwright
    path = os.environ.get('LUMINA_BROWSER') or shutil.which('chromium') or shutil.which('google-chrome')
    found = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=['--no-sandbox'])
        for _ in range(visits):
            context = browser.new_context()
            tab = context.new_page()
            begun = time.perf_counter()
            tab.goto(address)
            tab.get_by_role('button', name='Generate').wait_for()
            ready = time.perf_counter() - begun
            paint = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000")
            found.append((paint, ready))
            context.close()
        browser.close()
    return found


def visit(address: str, seed: int) -> float:
    """One visitor's generation by the API, in seconds, waiting for others included."""
    import gradio_client
    begun = time.perf_counter()
    client = gradio_client.Client(address, verbose=False)
    report = client.predict('', '', None, 3, SECONDS, seed, api_name='/generate')[1]
    assert report['query']['seed'] == seed
    return time.perf_counter() - begun


def main(model: tp.Optional[str] = None, visits: int = 5, users: int = 10) -> None:
    """Serve a page, measure it, print."""
    from lumina_plugin.web import build_page, serve
    from lumina_plugin.workflows import Studio, quickstart_run
    busy = os.getloadavg()[0]
    begun = time.perf_counter()
    page, desk = build_page(Studio(model or quickstart_run()))
    address = serve(page, desk, wait=False)
    started = time.perf_counter() - begun
    try:
        seen = paints(address, visits)
        alone = [visit(address, seed) for seed in range(visits)]
        begun = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(users) as pool:
            together = list(pool.map(lambda seed: visit(address, 100 + seed), range(users)))
        all_served = time.perf_counter() - begun
    finally:
        page.close(verbose=False)
        desk.close()
    lines = [('the page is served after', [started]), ('first contentful paint', [one for one, _ in seen]),
             ('the page can be used', [one for _, one in seen]),
             (f'{SECONDS} s generated and attributed', alone),
             (f'{users} visitors at once, each {SECONDS} s: the last is served after', [all_served]),
             ('... and one of them waited', together)]
    print(f'{processor()}, {os.cpu_count()} cores, other work before: load {busy:.1f}\n')
    print('| what | median, s | least | most |\n|---|---|---|---|')
    for name, values in lines:
        print(f'| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |')


if __name__ == '__main__':
    typer.run(main)
