"""Prints what is inside TFLite files: operations, inputs and outputs, and what is left in float.

python export/tflite_file.py exported/demo/1/tflite/*.tflite
"""

import sys

import command_line


def print_file(path):
    """Prints what is inside the file at `path`.

    Raises:
        ValueError: not a TFLite file, or a damaged one.
        OSError: it cannot be read.
    """
    from na_keras.deploy.tflite.graph import counted, describe, float_operations, operations

    blob = path.read_bytes()
    described = describe(blob)
    print(f"{path}: {described['bytes'] / 1e6:.2f} MB")
    for side in ("inputs", "outputs"):
        for tensor in described[side]:
            quantized = f", scale {tensor['scale']}, zero point {tensor['zero_point']}" if "scale" in tensor else ""
            print(f"  {side[:-1]:6} {tensor['name']}: {tensor['dtype']} {tensor['shape']}{quantized}")
    print(f"  {sum(described['operations'].values())} operations: {counted(described['operations'])}")
    custom = [operation.name for operation in operations(blob) if operation.is_custom]
    floating = [operation.name for operation, _ in float_operations(blob)]
    print(f"  outside TFLite's builtin set: {counted(custom) or 'none'}")
    print(f"  on floating-point tensors: {counted(floating) or 'none'}")


def parse_arguments(argv):
    parser = command_line.make_parser(__doc__)
    parser.add_argument("files", nargs="+", type=command_line.path, metavar="FILE.tflite")
    return parser.parse_args(argv)


def main(argv=None):
    arguments = parse_arguments(argv)
    command_line.check_installed("tflite_file.py", {"ai_edge_litert": "export"})
    command_line.start_tensorflow(None)
    for path in arguments.files:
        try:
            print_file(path)
        except (ValueError, OSError) as error:
            sys.exit(f"tflite_file.py: {path}: {error}")


if __name__ == "__main__":
    main()
