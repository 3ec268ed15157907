"""Where a step runs: one device, or one replica on each of several."""

import tensorflow as tf

STRATEGIES = ("none", "mirrored")


def split_cpu(count):
    """Presents the CPU as `count` devices, to rehearse replicas without GPUs. Before TensorFlow's first operation."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)


def make_strategy(name, virtual_cpus=None):
    """The tf.distribute strategy of that name.

    Args:
        name: "none": the default device. "mirrored": a replica on every GPU, or without GPUs on every CPU device.
        virtual_cpus: None, or how many CPU devices to rehearse on instead of the GPUs.

    Raises:
        ValueError: an unknown name (the message lists the known ones), or virtual CPUs without "mirrored".
    """
    if name not in STRATEGIES:
        raise ValueError(f"strategy must be one of {STRATEGIES}. Received: {name!r}")
    if virtual_cpus is not None:
        if name != "mirrored" or virtual_cpus < 1:
            raise ValueError(
                "--virtual-cpus splits the CPU into replicas: give at least 1, with --strategy=mirrored. "
                f"Received: {virtual_cpus} with strategy {name!r}"
            )
        split_cpu(virtual_cpus)
    if name == "none":
        return tf.distribute.get_strategy()
    gpus = tf.config.list_logical_devices("GPU")
    if gpus and virtual_cpus is None:
        return tf.distribute.MirroredStrategy(gpus)
    # CPU devices have no collective library worth using, and two strategies in one process would mix up its keys.
    cpus = [device.name for device in tf.config.list_logical_devices("CPU")]
    return tf.distribute.MirroredStrategy(cpus, cross_device_ops=tf.distribute.ReductionToOneDevice())


def check_batch_size(batch_size, strategy, accumulate=1):
    """Raises ValueError if the global batch does not divide among replicas and slices: each must weigh the same."""
    parts = strategy.num_replicas_in_sync * accumulate
    if batch_size % parts:
        nearest = max(parts, round(batch_size / parts) * parts)
        slices = f" times {accumulate} accumulated slices" if accumulate > 1 else ""
        raise ValueError(
            f"--batch-size is the global batch and must be divisible by the {strategy.num_replicas_in_sync} replicas"
            f"{slices}. Received: {batch_size}; the nearest that is: {nearest}"
        )
