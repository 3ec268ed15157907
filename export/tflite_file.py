"""Prints what is inside TFLite files: operations, inputs and outputs, and what is left in float.

python export/tflite_file.py exported/demo/1/tflite/*.tflite
"""

import argparse
import importlib.util
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def check_installed(program):
    """Ends a program that needs LiteRT where it is not installed."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        sys.exit(f"{program}: ai-edge-litert is not installed. Run: pip install -e '.[export]'")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE.tflite")
    arguments = parser.parse_args(argv)
    check_installed("tflite_file.py")
    from na_keras.deploy.tflite.graph import counted, describe, float_operations, operations

    for path in arguments.files:
        try:
            blob = path.read_bytes()
            described = describe(blob)
        except (ValueError, OSError) as error:
            sys.exit(f"tflite_file.py: {path}: {error}")
        print(f"{path}: {described['bytes'] / 1e6:.2f} MB")
        for kind in ("inputs", "outputs"):
            for tensor in described[kind]:
                quantized = f", scale {tensor['scale']}, zero point {tensor['zero_point']}" if "scale" in tensor else ""
                print(f"  {kind[:-1]:6} {tensor['name']}: {tensor['dtype']} {tensor['shape']}{quantized}")
        print(f"  {sum(described['operations'].values())} operations: {counted(described['operations'])}")
        custom = [operation.name for operation in operations(blob) if operation.is_custom]
        floating = [operation.name for operation, _ in float_operations(blob)]
        print(f"  outside TFLite's builtin set: {counted(custom) or 'none'}")
        print(f"  on floating-point tensors: {counted(floating) or 'none'}")


if __name__ == "__main__":
    main()
