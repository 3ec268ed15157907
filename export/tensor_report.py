"""Where a quantized network loses its accuracy: every tensor beside the same tensor of the float file, on real images.

    python export/tensor_report.py --quantized exported/demo/1/tflite/model_int8.tflite \\
        --float exported/demo/1/tflite/model_float32.tflite --images photographs/ --output tensors.csv

What the columns mean is said in na_keras/deploy/tflite/tensor_report.py.
"""

import sys

import command_line


def load_images(path, shape, resize, count):
    """Up to `count` images as float32 (count, *shape), from a folder of image files or an .npz with `images`.

    Args:
        path: of the folder or file.
        shape: (height, width, channels).
        resize: as of ImageFormat, for image files.

    Raises:
        ValueError: neither, or images of another shape.
        FileNotFoundError: a folder without images.
    """
    import numpy as np

    if path.is_dir():
        from na_keras.deploy import calibration
        from na_keras.deploy.images import ImageFormat

        images = ImageFormat(*shape, resize)
        crops = [images.crop(file.read_bytes()).numpy() for file in calibration.image_files(path)[:count]]
        return np.stack(crops).astype(np.float32)
    if not path.is_file():
        raise ValueError(f"No images at {path}. Expected a folder of image files or an .npz with `images`.")
    with np.load(path, allow_pickle=False) as file:
        if "images" not in getattr(file, "files", ()):
            raise ValueError(f"{path} has no array `images`.")
        images = file["images"][:count]
    if images.ndim != 4 or images.shape[1:] != shape:
        raise ValueError(f"Expected images (count, {', '.join(map(str, shape))}). Received: {images.shape} in {path}")
    return images.astype(np.float32)


def parse_arguments(argv):
    parser = command_line.make_parser(__doc__)
    add = parser.add_argument
    add("--quantized", type=command_line.path, required=True, metavar="FILE.tflite")
    add("--float", type=command_line.path, required=True, metavar="FILE.tflite", dest="reference")
    add("--images", type=command_line.path, required=True, help="a folder of image files, or an .npz with `images`")
    add("--count", type=int, default=32, help="images used, at most (default: %(default)s)")
    add("--resize", type=int, help="pixels of the shorter side before the crop (default: 8/7 of the size)")
    add("--output", type=command_line.path, metavar="FILE.csv", help="all tensors, in the order of computation")
    add("--worst", type=int, default=20, help="tensors printed, worst first (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.count < 1 or arguments.worst < 1:
        parser.error(f"--count and --worst must be at least 1. Received: {arguments.count} and {arguments.worst}")
    return arguments


def main(argv=None):
    arguments = parse_arguments(argv)
    command_line.check_installed("tensor_report.py", {"ai_edge_litert": "export"})
    command_line.start_tensorflow("tensor_report.py")
    from na_keras.deploy import compare_tensors, describe, write_csv
    from na_keras.deploy.tflite.tensor_report import match_tensors, table, worst_first

    try:
        quantized, reference = arguments.quantized.read_bytes(), arguments.reference.read_bytes()
        shape = tuple(describe(quantized)["inputs"][0]["shape"][1:])
        matched, whole = match_tensors(quantized, reference)
        images = load_images(arguments.images, shape, arguments.resize, arguments.count)
        print(f"{len(matched)} of {whole} tensors have a counterpart in {arguments.reference}; {len(images)} images")
        reports = compare_tensors(quantized, reference, images)
        if arguments.output is not None:
            write_csv(reports, arguments.output)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"tensor_report.py: {error}")
    print(*table(worst_first(reports)[: arguments.worst]), sep="\n")


if __name__ == "__main__":
    main()
