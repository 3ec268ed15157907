"""torchvision's files of ImageNet weights for the networks of this library: which there are, and getting one.

A file is named NETWORK-DIGITS.pth, where the digits are the first eight of the hexadecimal SHA-256 of its content
(torch.hub.load_state_dict_from_url, check_hash). keras.utils.get_file keeps it in Keras' cache, in `models/`,
and cannot check such a part of a hash: that is done here, each time.
"""

import os
import pathlib
import re

import keras

from na_keras.files import sha256_of

ORIGIN = "https://download.pytorch.org/models/"
# name of weights -> network of this library -> file; torchvision's IMAGENET1K_V1 and IMAGENET1K_V2
FILES = {
    "torchvision-v1": {
        "ResNet18": "resnet18-f37072fd.pth",
        "ResNet34": "resnet34-b627a593.pth",
        "ResNet50": "resnet50-0676ba61.pth",
        "ResNet101": "resnet101-63fe2227.pth",
        "ResNet152": "resnet152-394f9c45.pth",
        "MobileNetV2": "mobilenet_v2-b0353104.pth",
    },
    "torchvision-v2": {
        "ResNet50": "resnet50-11ad3fa6.pth",
        "ResNet101": "resnet101-cd907fc2.pth",
        "ResNet152": "resnet152-f82ba261.pth",
        "MobileNetV2": "mobilenet_v2-7ebf99e0.pth",
    },
}


def check_digits(path, digest):
    """Raises ValueError if the name of a .pth file ends in eight digits of a hash that is not its own."""
    digits = re.search(r"-([0-9a-f]{8})\.pth$", pathlib.Path(path).name)
    if digits and not digest.startswith(digits[1]):
        raise ValueError(
            f"{path} is damaged, or is another file: its name promises a SHA-256 that begins with {digits[1]}, its "
            f"content has {digest[:8]}. Delete it, and the next try downloads it again."
        )


def cache_folder():
    """Keras' cache: the folder that KERAS_HOME names, else `.keras` in the home folder, or in /tmp."""
    home = pathlib.Path.home()
    home = home if os.access(home, os.W_OK) else pathlib.Path("/tmp")
    return pathlib.Path(os.environ.get("KERAS_HOME") or home / ".keras").expanduser()


def check_torch():
    """Raises ValueError where PyTorch, which reads the files, is not installed: before megabytes are downloaded."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "torchvision's weights need PyTorch to be read: pip install torch. Or, where PyTorch is, write a file that "
            "needs none (numpy.savez, safetensors), and give its path as weights."
        ) from error


def fetch(name, network):
    """The path of the file, from Keras' cache or downloaded into it.

    Args:
        name: a key of FILES.
        network: name of the network in na_keras.models.MODELS.

    Raises:
        ValueError: torchvision has no such weights; no PyTorch; the download fails; the file has another hash. A file
            that has just been downloaded with another hash is deleted again.
    """
    if network not in FILES[name]:
        has = [other for other, files in FILES.items() if network in files]
        instead = f"{network} has {' and '.join(has)}" if has else f"They are for {', '.join(FILES[name])}"
        raise ValueError(f'There is no weights="{name}" for {network}. {instead}.')
    check_torch()
    file = FILES[name][network]
    cached = cache_folder() / "models" / file
    there = cached.exists()
    try:
        path = pathlib.Path(keras.utils.get_file(file, ORIGIN + file, cache_subdir="models", cache_dir=cache_folder()))
    except Exception as error:  # get_file raises a plain Exception
        raise ValueError(
            f"{ORIGIN + file} cannot be downloaded ({' '.join(str(error).split())}). Without a network: put the file "
            f"at {cached}, or give its path as weights."
        ) from error
    try:
        check_digits(path, sha256_of(path))
    except ValueError:
        if not there:
            path.unlink(missing_ok=True)
        raise
    return path
