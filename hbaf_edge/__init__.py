"""hbaf-edge: emotion recognition in conversations from audio and text, turn by turn, on your own hardware.

    from hbaf_edge import HBAFRuntime
    runtime = HBAFRuntime()
    chat = runtime.conversation()
    p = runtime.predict("hello.wav", text="You did it!", speaker="anna", conversation=chat)

Importing this package never imports torch, transformers or tensorrt. Its output is an estimate of the emotion
expressed, not of what a person feels.
"""

from hbaf_edge.conversation import Conversation, Turn
from hbaf_edge.errors import BackendError, BundleError, HBAFError, InputError, StateError
from hbaf_edge.prediction import Prediction
from hbaf_edge.runtime import HBAFRuntime
from hbaf_edge.streaming import LiveTurn
from hbaf_edge.telemetry import disable_telemetry
from hbaf_edge.version import __version__

__all__ = [
    "BackendError",
    "BundleError",
    "Conversation",
    "HBAFError",
    "HBAFRuntime",
    "InputError",
    "LiveTurn",
    "Prediction",
    "StateError",
    "Turn",
    "__version__",
]

disable_telemetry()  # before ONNX Runtime is loaded, which reads the switch only then
