"""Where a step runs: one device, one replica on each device of this machine, on those of several machines, or on a TPU.

Several machines run the same command line, each with its own TF_CONFIG (docs/several_machines.md); the first in the
list is the chief, which alone writes the run directory.
"""

import json
import os

import tensorflow as tf

STRATEGIES = ("none", "mirrored", "multi_worker_mirrored", "tpu")


def split_cpu(count):
    """Presents the CPU as `count` devices, to rehearse replicas without GPUs. Before TensorFlow's first operation."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)


def mirrored(use_gpus):
    """A replica on every GPU, or on every CPU device."""
    gpus = tf.config.list_logical_devices("GPU")
    if gpus and use_gpus:
        return tf.distribute.MirroredStrategy(gpus)
    # CPU devices have no collective library worth using, and two strategies in one process would mix up its keys.
    cpus = [device.name for device in tf.config.list_logical_devices("CPU")]
    return tf.distribute.MirroredStrategy(cpus, cross_device_ops=tf.distribute.ReductionToOneDevice())


def multi_worker_mirrored():
    """A replica on every device of every machine that TF_CONFIG lists. Waits for all of them."""
    example = '{"cluster": {"worker": ["machine-0:12345", "machine-1:12345"]}, "task": {"type": "worker", "index": 0}}'
    text = os.environ.get("TF_CONFIG")
    try:
        config = json.loads(text or "null")
        machines, task = config["cluster"]["worker"], config["task"]
        well_formed = task["type"] == "worker" and 0 <= int(task["index"]) < len(machines)
    except (ValueError, TypeError, KeyError):
        well_formed = False
    if not well_formed:
        raise ValueError(
            "--strategy=multi_worker_mirrored needs TF_CONFIG in the environment: one list of machines everywhere, and "
            f"each machine's own index in it, for example\n  TF_CONFIG='{example}'\nReceived: {text!r}"
        )
    return tf.distribute.MultiWorkerMirroredStrategy()


def tpu():
    """The cores of the TPU that TPU_NAME names, by default this machine's."""
    name = os.environ.get("TPU_NAME", "local")
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(name)
    except (ValueError, tf.errors.OpError) as error:
        raise ValueError(
            f"--strategy=tpu found no TPU named {name!r}. Run on a TPU machine, or name one in TPU_NAME. TensorFlow "
            f"says: {str(error).splitlines()[0]}"
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def make_strategy(name, virtual_cpus=None):
    """The tf.distribute strategy of that name.

    Args:
        name: "none": the default device. "mirrored": a replica on every GPU, or without GPUs on every CPU device.
            "multi_worker_mirrored": the same on several machines. "tpu": on every core of a TPU.
        virtual_cpus: None, or how many CPU devices to rehearse on instead of the GPUs.

    Raises:
        ValueError: an unknown name (the message lists the known ones), virtual CPUs without "mirrored", several
            machines without TF_CONFIG, a TPU that is not there.
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
    if name == "mirrored":
        return mirrored(use_gpus=virtual_cpus is None)
    return multi_worker_mirrored() if name == "multi_worker_mirrored" else tpu()


def machines(strategy):
    """How many processes train together."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    return strategy.cluster_resolver.cluster_spec().num_tasks("worker")


def is_chief(strategy):
    """Whether this process writes the run directory: the first of several machines, or the only one."""
    return machines(strategy) == 1 or strategy.cluster_resolver.task_id == 0


def total(strategy, value):
    """The sum of a Python number over all replicas of all machines. All must ask; so it is a barrier too."""

    @tf.function
    def reduce(value):
        return strategy.reduce("SUM", strategy.run(tf.identity, args=(value,)), axis=None)

    return float(reduce(tf.constant(value, tf.float64)))


def copy_from_first(strategy, variables):
    """Gives every replica the first one's values of floating-point variables, the batch norms' moving statistics.

    Without --sync-bn each replica keeps its own, as in PyTorch, and as there the first one's are the network's: a
    checkpoint holds them, so they must be what is evaluated.
    """
    variables = [variable.value for variable in variables if variable.value.dtype.is_floating]
    if strategy.num_replicas_in_sync == 1 or not variables:
        return

    @tf.function
    def copy():
        def own_or_zero():
            first = tf.distribute.get_replica_context().replica_id_in_sync_group == 0
            return [tf.where(first, variable, tf.zeros_like(variable)) for variable in variables]

        values = strategy.run(own_or_zero)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(strategy.reduce("SUM", value, axis=None))

    copy()


class DisagreementError(RuntimeError):
    """The machines of a run do not see the same thing."""


def check_same_step(strategy, step):
    """Raises DisagreementError if the machines stand at different steps: they do not see the same run directory."""
    replicas = strategy.num_replicas_in_sync
    if total(strategy, step) != step * replicas:
        raise DisagreementError(
            f"The machines resume from different steps (here {step}). --run-dir must be one folder that all of them "
            "see, on a shared file system."
        )


def check_same_data(strategy, fingerprint):
    """Raises DisagreementError if the machines' data differs; `fingerprint` is a whole number below 2**40."""
    if machines(strategy) > 1 and total(strategy, fingerprint) != fingerprint * strategy.num_replicas_in_sync:
        raise DisagreementError(
            "The machines do not see the same data. --data-dir must hold the same files on each; data.json in the run "
            "directory says what the first one sees."
        )


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
