"""One grammar by which commands name a network, and what is built of such a name.

    ResNet50                                this library's, na_keras.models.MODELS, in any case
    keras.applications.EfficientNetB0       any builder there, in any case
    FILE.keras, FILE.h5                     a functional classifier of images

An existing path wins, then `keras.applications.`, then our names. Whatever is built takes raw RGB images, 0..255.
"""

from na_keras.networks.build import Network, Start, build
from na_keras.networks.endings import ACTIVATIONS, ending
from na_keras.networks.exported import Exported, open_exported
from na_keras.networks.files import open_classifier, own_shape
from na_keras.networks.names import check_attention, import_modules, network_name, resolve_attention
from na_keras.networks.pixels import PIXELS, unlikely_range

__all__ = [
    "ACTIVATIONS",
    "PIXELS",
    "Exported",
    "Network",
    "Start",
    "build",
    "check_attention",
    "ending",
    "import_modules",
    "network_name",
    "open_classifier",
    "open_exported",
    "own_shape",
    "resolve_attention",
    "unlikely_range",
]
