"""Make torchaudio, and with it transformers, importable with a CPU build of torch.

The wheels of torchaudio 2.11 link CUDA libraries, so `import torchaudio` raises OSError with a CPU torch. transformers
imports torchaudio if it is installed and fails, too. This project only uses parts of torchaudio that are Python over
torch (transforms, functional, compliance.kaldi); rnnt_loss and forced_align need the library. So the loader is
replaced by one that reports the library as not available, as torchaudio does where it was built without it.
"""

from __future__ import annotations

import importlib.util
import sys
import types


def ensure_importable() -> bool:
    """Import torchaudio with or without its compiled library. Return False if torchaudio is not installed.

    >>> ensure_importable() in (True, False)
    True
    """
    if importlib.util.find_spec("torchaudio") is None:
        return False
    try:
        import torchaudio
    except OSError:
        for name in [n for n in sys.modules if n == "torchaudio" or n.startswith("torchaudio.")]:
            del sys.modules[name]
        sys.modules["torchaudio._extension"] = _without_library()
        import torchaudio  # noqa: F401
    return True


def _without_library() -> types.ModuleType:
    def missing(function: object) -> object:
        return function

    module = types.ModuleType("torchaudio._extension")
    module.__dict__.update(_IS_TORCHAUDIO_EXT_AVAILABLE=False, _IS_ALIGN_AVAILABLE=False, fail_if_no_align=missing)
    return module
