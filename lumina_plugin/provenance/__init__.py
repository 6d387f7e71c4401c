"""Attributions that travel with the audio: a record small enough for tags, in a file or beside it, and the way back.

    report -> record -> sidecar JSON, tags (mutagen), C2PA manifest (c2pa-python, where it is installed)
    any of these -> `read_back` -> what it says, and whether report and sound are still those that it was written for

Hashes find what was changed by accident or carelessly. Whoever can write a file can write its hashes, too: only a C2PA
signature shows who vouches for them.
"""

from .reading import Check, Found, Source, read_back
from .record import Attribution, attribution_of, report_sha256
from .signing import Signing
from .sound import content_sha256
from .tags import read_tags, write_tags

__all__ = ['Attribution', 'Check', 'Found', 'Signing', 'Source', 'attribution_of', 'content_sha256', 'read_back',
           'read_tags', 'report_sha256', 'write_tags']
