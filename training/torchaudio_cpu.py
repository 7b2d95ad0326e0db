"""Make torchaudio (and with it transformers) importable beside a CPU build of torch.

The wheels of torchaudio 2.11 link CUDA libraries, so with a CPU torch `import torchaudio` ends in OSError; and
transformers, which imports torchaudio wherever it finds it, fails with it. Everything this project uses (transforms,
functional, compliance.kaldi) is plain Python over torch; only rnnt_loss and forced_align live in that library. So the
package's loader is replaced by one that says "not available", which is what torchaudio itself does on systems built
without the library.
"""

from __future__ import annotations

import importlib.util
import sys
import types


def ensure_importable() -> bool:
    """Import torchaudio with or without its compiled library; False where torchaudio is not installed.

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
