"""nlptasks: one pretrained backbone, many task heads, one pass.

The public names stand in ``__init__.pyi``, beside `nlptasks.pipeline` and `nlptasks.testing`; everything else is private. They
are imported when they are first used, so ``import nlptasks`` is fast.
"""

import lazy_loader

from nlptasks.version import __version__

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = ["__version__", *_names]
