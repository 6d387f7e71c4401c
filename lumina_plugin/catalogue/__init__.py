"""The songs a model is trained on: read from audiocraft manifests (`tracks`), made from a folder (`build`), checked
(`check`)."""
from .build import BuildResult, build_catalogue
from .check import CheckResult, check_catalogue
from .tracks import Catalogue, Share, Track

__all__ = ['BuildResult', 'Catalogue', 'CheckResult', 'Share', 'Track', 'build_catalogue', 'check_catalogue']
