"""The files that benchmark.py measures, written when they are first asked for and kept in a folder."""

import contextlib
import hashlib
import importlib.metadata
import os
import pathlib
import shutil

from latency import networks, runtimes


def fingerprint():
    """Eight characters that change with the code and the packages that decide what is in an artifact."""
    import na_keras

    digest = hashlib.sha256()
    for folder in (pathlib.Path(__file__).parent, pathlib.Path(na_keras.__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    for package in ("tensorflow", "keras"):
        digest.update(importlib.metadata.version(package).encode())
    return digest.hexdigest()[:8]


class Artifacts:
    """Networks and their files, made when they are first asked for and kept in a folder.

    A file carries the fingerprint of the code that made it: one from another version is never measured.

    Args:
        folder: pathlib.Path of an existing folder.
        size: pixels of the images' sides.
        pixels: what they mean to files that do not show it.
    """

    def __init__(self, folder, size, pixels=None):
        self.folder, self.size, self.pixels, self.fingerprint = folder, size, pixels, fingerprint()
        self.networks = {}

    def network(self, name, attention):
        """The Keras network."""
        if (name, attention) not in self.networks:
            self.networks[name, attention] = networks.make_network(name, attention, self.size, self.pixels)
        return self.networks[name, attention]

    def path(self, name, attention, kind):
        """The file or SavedModel folder of a kind, a key of runtimes.RUNTIMES with a writer."""
        from na_keras.files import sha256_of

        stem = pathlib.Path(name).stem + f"-{sha256_of(name)[:8]}" if pathlib.Path(name).is_file() else name.lower()
        path = self.folder / f"{stem}-{attention}-{self.size}-{kind}-{self.fingerprint}"
        if not path.exists():
            print(f"  writing {path.name}", flush=True)
            temporary = path.with_name(f"incoming-{os.getpid()}-{path.name}")
            try:
                runtimes.RUNTIMES[kind].write(self.network(name, attention), kind, self.size, temporary)
                temporary.rename(path)
            finally:
                remove(temporary)
        return path

    def forget(self):
        """Frees the Keras networks, which take more memory than what is measured."""
        import gc

        import keras

        self.networks = {}
        keras.backend.clear_session()
        gc.collect()


def remove(path):
    """Deletes a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def megabytes(path):
    """Size of a file or folder, in 10^6 bytes."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def network_megabytes(network):
    """Size of a Keras network's float32 weights, in 10^6 bytes."""
    return 4e-6 * network.count_params()
