"""The networks beside torchvision's and timm's own classes, with the same weights. Where both are installed.

Their names and their geometry, as the published weights of these classes have them; the weights are random here.
"""

import keras
import numpy as np
import pytest
from small_networks import randomize

import na_keras
from na_keras import load_torch_weights, to_torch_state_dict

if keras.backend.backend() != "torch":  # torchvision beside TensorFlow ends the process
    pytest.skip("torchvision's networks are compared on the torch backend", allow_module_level=True)
torch = pytest.importorskip("torch", reason="compares with PyTorch's packages")
torchvision = pytest.importorskip("torchvision", reason="compares with torchvision's networks")
timm = pytest.importorskip("timm", reason="compares with timm's networks")
torch_networks = pytest.importorskip("torch_networks")

SHAPE = (96, 128, 3)  # even sides, where padding shows; not square
TORCHVISION, TIMM = torchvision.models.get_model, timm.create_model
ECA = {"block_args": {"attn_layer": "eca"}}  # timm has no resnet50 with ECA by a name of its own
PUBLISHED = [
    (TORCHVISION, "resnet18", {}, "ResNet18", None),
    (TORCHVISION, "resnet34", {}, "ResNet34", None),
    (TORCHVISION, "resnet50", {}, "ResNet50", None),
    (TORCHVISION, "resnet101", {}, "ResNet101", None),
    (TORCHVISION, "mobilenet_v2", {}, "MobileNetV2", None),
    (TIMM, "resnet18", {}, "ResNet18", None),
    (TIMM, "resnet50", {}, "ResNet50", None),
    (TIMM, "seresnet50", {}, "ResNet50", "se"),
    (TIMM, "resnet50", ECA, "ResNet50", "eca"),
    (TIMM, "mobilenetv2_100", {}, "MobileNetV2", None),
]
# timm's networks that look like ours and are not -> what the message says
OTHERS = {
    "resnet50d": "has a deep stem",
    "ecaresnet50d": "has a deep stem",
    "ecaresnet50t": "has a deep stem",
    "ecaresnetlight": "averages before the convolutions of its shortcuts",
}


def ours(name, attention):
    return getattr(na_keras, name)(
        input_shape=SHAPE, classes=10, classifier_activation=None, attention=attention, include_preprocessing=False
    )


@pytest.mark.parametrize(("make", "name", "options", "builder", "attention"), PUBLISHED)
def test_logits_equal_those_of_a_published_class(make, name, options, builder, attention):
    torch.manual_seed(0)
    network, model = torch_networks.stand_in(make(name, num_classes=10, **options)), ours(builder, attention)
    load_torch_weights(model, network.state_dict())
    images = np.random.default_rng(1).normal(size=(2, *SHAPE)).astype("float32")
    with torch.no_grad():
        expected = network(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))).numpy()
    # Two float32 programs of up to 100 layers, some 1e-5 of the spread each.
    assert np.abs(model.predict(images, verbose=0) - expected).max() < 2e-4 * expected.std()


@pytest.mark.parametrize(
    ("make", "name", "options", "builder", "attention"), [r for r in PUBLISHED if r[0] is not TIMM]
)
def test_torchvision_loads_what_we_write(make, name, options, builder, attention):
    network, model = make(name, num_classes=10, **options), randomize(ours(builder, attention))
    state = {key: torch.from_numpy(array) for key, array in to_torch_state_dict(model).items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert {key.rpartition(".")[2] for key in missing} <= {"num_batches_tracked"}


@pytest.mark.parametrize("name", OTHERS)
def test_networks_of_timm_that_are_others_are_refused_by_name(name):
    state = timm.create_model(name, num_classes=10).state_dict()
    with pytest.raises(ValueError, match=f"{OTHERS[name]}.*{name}.*another network"):
        load_torch_weights(ours("ResNet50", None), state)
