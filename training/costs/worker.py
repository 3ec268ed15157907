"""One process of step_cost.py or compare.py: measures one group of programs in turns, and prints what it found, JSON.

    KERAS_BACKEND=jax python training/costs/worker.py '{"what": "layer", "engine": "jax", "shape": [8, 56, 56, 256],
        "modules": ["se", "se", "na"], "precision": "float32", "rounds": 25}'

A group's programs are a list of modules, the first of which is the base; the same name twice is a null test. `what` is

    layer    forward pass, and forward and backward pass, of one attention layer on a map of `shape`
    step     a training step of `model` with `batch` images of `size` pixels: forward, backward, SGD with momentum
    memory   the largest memory of the process after three such steps; there is one module then
    answer   an image's answer by `model` in deploy form, as its SavedModel computes it (tensorflow only)

What a job may also have: `network`, further fields of na_keras.networks.Network, of which `where` is of modules;
`classes`, 1000 without it; `imports`, modules of the user's own.

`engine` is tensorflow (a tf.function), xla (the same with jit_compile) or jax (jax.jit). Data are random.
"""

import json
import resource
import sys

import keras
import numpy as np

CLASSES = 1000


def random_numbers(*shape, seed=0):
    """Normally distributed, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def make_layer(module, channels):
    """A built attention layer whose gate depends on its input."""
    from na_keras.layers import ATTENTION, NormalizationAttention

    layer = ATTENTION[module]()
    layer.build((None, None, None, channels))
    if isinstance(layer, NormalizationAttention):
        layer.gamma.assign([0.5])
    return layer


def make_model(job, module, activation=None):
    """The network of a job with a module, with fresh weights."""
    from na_keras.networks import Network, build, import_modules

    import_modules(job.get("imports"))
    keras.utils.set_random_seed(0)
    attention, fields = module, dict(job.get("network", {}))
    if module == "none":
        attention = fields["where"] = None
    network = Network(job["model"], attention, **fields)
    return build(network, size=job["size"], classes=job.get("classes", CLASSES), activation=activation)


class OnTensorFlow:
    """Programs as tf.functions, whose work is done when they return."""

    def __init__(self, xla):
        import tensorflow as tf

        self.tf, self.compile = tf, lambda function: tf.function(function, jit_compile=xla)

    def layer(self, layer, x, cotangent):
        """(forward, forward and backward) of a layer, functions without arguments."""
        tf, x, cotangent = self.tf, self.tf.constant(x), self.tf.constant(cotangent)
        x, cotangent = (tf.cast(value, layer.compute_dtype) for value in (x, cotangent))

        def both(x, cotangent):
            variables = [variable.value for variable in layer.trainable_variables]
            with tf.GradientTape() as tape:
                tape.watch(x)
                output = layer(x)
            return output, tape.gradient(output, [x, *variables], output_gradients=cotangent)

        forward, both = self.compile(lambda x: layer(x)), self.compile(both)
        return lambda: self.finish(forward(x)), lambda: self.finish(both(x, cotangent))

    def step(self, model, images, labels):
        """A training step, function without arguments."""
        tf, images, labels = self.tf, self.tf.constant(images), self.tf.constant(labels)
        optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
        optimizer.build(model.trainable_variables)
        variables = [variable.value for variable in model.trainable_variables]

        def step(images, labels):
            with tf.GradientTape() as tape:
                logits = tf.cast(model(images, training=True), tf.float32)
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            optimizer.apply(tape.gradient(loss, variables))
            return loss

        step = self.compile(step)
        return lambda: self.finish(step(images, labels))

    def answer(self, model, images):
        """An answer in deploy form, function without arguments."""
        from na_keras.deploy import deploy_copy

        (model, _), images = deploy_copy(model), self.tf.constant(images)
        answer = self.compile(lambda images: model(images, training=False))
        return lambda: self.finish(answer(images))

    def finish(self, output):
        """Waits for the device."""
        self.tf.test.experimental.sync_devices()
        return output

    def device_megabytes(self):
        """Largest memory of a GPU; None without one: on the CPU it is the process's."""
        gpu = self.tf.config.list_logical_devices("GPU")
        return self.tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e6 if gpu else None

    def device(self):
        """ "CPU", or the name of the GPU."""
        gpu = self.tf.config.list_physical_devices("GPU")
        return self.tf.config.experimental.get_device_details(gpu[0])["device_name"] if gpu else "CPU"

    def versions(self):
        """Of what decides the numbers, as text."""
        return f"TensorFlow {self.tf.__version__}, Keras {keras.__version__}"


class OnJax:
    """Programs as jax.jit makes them."""

    def __init__(self, xla):
        import jax

        self.jax = jax

    def layer(self, layer, x, cotangent):
        """(forward, forward and backward) of a layer, functions without arguments."""
        jax = self.jax
        x, cotangent = (jax.numpy.asarray(value, layer.compute_dtype) for value in (x, cotangent))
        trainable = [variable.value for variable in layer.trainable_variables]
        rest = [variable.value for variable in layer.non_trainable_variables]
        forward = jax.jit(lambda trainable, x: layer.stateless_call(trainable, rest, x)[0])

        @jax.jit
        def both(trainable, x, cotangent):
            output, pullback = jax.vjp(forward, trainable, x)
            return output, pullback(cotangent)

        wait = jax.block_until_ready
        return lambda: wait(forward(trainable, x)), lambda: wait(both(trainable, x, cotangent))

    def step(self, model, images, labels):
        """A training step, function without arguments."""
        jax = self.jax
        images, labels = jax.numpy.asarray(images), jax.numpy.asarray(labels)
        optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
        optimizer.build(model.trainable_variables)

        def loss(trainable, rest, images, labels):
            logits, rest = model.stateless_call(trainable, rest, images, training=True)
            of_examples = jax.nn.log_softmax(logits.astype("float32"))[jax.numpy.arange(len(labels)), labels]
            return -of_examples.mean(), rest

        def step(state, images, labels):
            trainable, rest, moments = state
            (value, rest), gradients = jax.value_and_grad(loss, has_aux=True)(trainable, rest, images, labels)
            trainable, moments = optimizer.stateless_apply(moments, gradients, trainable)
            return (trainable, rest, moments), value

        step = jax.jit(step, donate_argnums=0)
        groups = model.trainable_variables, model.non_trainable_variables, optimizer.variables
        # Copies, because the step gives up what it is called with.
        state = [[jax.numpy.array(variable.value) for variable in group] for group in groups]

        def run():
            nonlocal state
            state, value = step(state, images, labels)
            return jax.block_until_ready(value)

        return run

    def device_megabytes(self):
        """Largest memory of a GPU; None without one."""
        statistics = self.jax.local_devices()[0].memory_stats()
        return statistics and statistics["peak_bytes_in_use"] / 1e6

    def device(self):
        """ "CPU", or the name of the GPU."""
        device = self.jax.local_devices()[0]
        return "CPU" if device.platform == "cpu" else device.device_kind

    def versions(self):
        """Of what decides the numbers, as text."""
        return f"JAX {self.jax.__version__}, Keras {keras.__version__}"


ENGINES = {"tensorflow": OnTensorFlow, "xla": OnTensorFlow, "jax": OnJax}


def step_program(engine, job, module):
    """The training step of a job with a module."""
    images = random_numbers(job["batch"], job["size"], job["size"], 3)
    labels = np.random.default_rng(0).integers(0, job.get("classes", CLASSES), job["batch"]).astype("int32")
    return engine.step(make_model(job, module), images, labels)


def measure(job, engine):
    """{name of the measurement: for each module a list, of seconds of each round or of the one number of megabytes}."""
    if job["what"] == "memory":
        (module,) = job["modules"]
        run = step_program(engine, job, module)
        for _ in range(3):
            run()
        kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"memory": [[engine.device_megabytes() or 1024e-6 * kibibytes]]}

    from na_keras import interleaved

    programs = {}
    for module in job["modules"]:
        if job["what"] == "step":
            programs.setdefault("step", []).append(step_program(engine, job, module))
            continue
        if job["what"] == "answer":
            model, image = make_model(job, module, "softmax"), random_numbers(1, job["size"], job["size"], 3)
            programs.setdefault("answer", []).append(engine.answer(model, image))
            continue
        layer = make_layer(module, job["shape"][-1])
        pair = engine.layer(layer, random_numbers(*job["shape"]), random_numbers(*job["shape"], seed=1))
        for name, program in zip(("forward", "forward + backward"), pair, strict=True):
            programs.setdefault(name, []).append(program)
    return {
        name: list(interleaved.measure(dict(enumerate(group)), job["rounds"]).values())
        for name, group in programs.items()
    }


def main(text):
    job = json.loads(text)
    keras.config.set_image_data_format("channels_last")  # whatever this machine's keras.json says
    keras.config.set_dtype_policy(job["precision"])
    engine = ENGINES[job["engine"]](xla=job["engine"] == "xla")
    print(json.dumps({"measured": measure(job, engine), "device": engine.device(), "versions": engine.versions()}))


if __name__ == "__main__":
    main(sys.argv[1])
