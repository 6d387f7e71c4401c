"""The demo as a script: `python demo/app.py`, the same as `lumina demo`. The page itself is lumina_plugin/web.py."""

import sys

from lumina_plugin.cli import main

if __name__ == '__main__':
    main(['demo', *sys.argv[1:]])
