"""The recipes' numbers against the paper and the released code."""

import dataclasses
import json

import keras
import numpy as np
import pytest

import recipe_fields
import recipes
import train
from engine import optimization
from engine.training_state import make_model
from na_keras import NAMobileNetV2, TimmLamb
from run_files import run_directory

DEMO = recipes.RECIPES["digits-demo"]
STEPS_PER_EPOCH = 1_281_167 // 256


def rates(name, *epochs, steps_per_epoch=STEPS_PER_EPOCH):
    schedule = optimization.make_schedule(recipes.RECIPES[name], steps_per_epoch)
    return [float(schedule(int(epoch * steps_per_epoch))) for epoch in epochs]


@pytest.mark.parametrize("name", ["resnet50-paper", "resnet50-released-code"])
def test_resnet_drops_by_ten_every_thirty_epochs_at_the_first_step_of_the_epoch(name):
    schedule = optimization.make_schedule(recipes.RECIPES[name], STEPS_PER_EPOCH)
    for epoch, rate in ((30, 0.01), (60, 1e-3), (90, 1e-4)):
        assert float(schedule(epoch * STEPS_PER_EPOCH - 1)) == pytest.approx(10 * rate)
        assert float(schedule(epoch * STEPS_PER_EPOCH)) == pytest.approx(rate)
    np.testing.assert_allclose(rates(name, 0, 99.9), [0.1, 1e-4], rtol=1e-6)


def test_a_short_run_of_a_step_schedule_never_drops():
    recipe = recipes.get_recipe("resnet50-paper", epochs=2)
    schedule = optimization.make_schedule(recipe, 10)
    np.testing.assert_allclose([float(schedule(step)) for step in (0, 19, 20)], 0.1, rtol=1e-6)


def test_mobilenet_follows_a_cosine_with_and_without_warmup():
    np.testing.assert_allclose(rates("mobilenetv2-paper", 0, 75, 150), [0.1, 0.05, 0], atol=1e-6)
    released = rates("mobilenetv2-released-code", 0, 2.5, 5, 77.5, 150)
    np.testing.assert_allclose(released, [0, 0.05, 0.1, 0.05, 0], atol=1e-5)


def test_released_mobilenet_recipe_spares_what_the_script_spares():
    recipe = recipes.RECIPES["mobilenetv2-released-code"]
    variables = NAMobileNetV2().trainable_variables
    optimizer = optimization.make_optimizer(recipe, 0.1, variables)
    decayed = {v.path for v in variables if optimizer._use_weight_decay(v)}
    kinds = {
        "convolution": "block_3_project/kernel",
        "expansion": "block_3_expand/kernel",
        "stem": "Conv1/kernel",
        "classifier": "predictions/kernel",
        "gamma of NA": "block_3_attention/gamma",
    }
    assert set(kinds.values()) <= decayed
    for path in (
        "block_3_depthwise/kernel",
        "block_3_project_BN/gamma",
        "bn_Conv1/beta",
        "Conv_1_bn/gamma",
        "predictions/bias",
        "block_3_attention/beta",
    ):
        assert path in {v.path for v in variables} and path not in decayed
    # 36 convolutions and the classifier, without 17 depthwise ones, and 17 gammas
    assert len(decayed) == 1 + 16 + 17 + 1 + 1 + 17


def test_paper_recipes_decay_everything():
    variables = NAMobileNetV2(alpha=0.35).trainable_variables
    optimizer = optimization.make_optimizer(recipes.RECIPES["mobilenetv2-paper"], 0.1, variables)
    assert all(optimizer._use_weight_decay(v) for v in variables) and optimizer.weight_decay == 1e-4


def test_paper_and_released_code_disagree_only_where_said():
    paper, released = (recipes.RECIPES[f"resnet50-{kind}"] for kind in ("paper", "released-code"))
    differing = {name for name in vars(paper) if getattr(paper, name) != getattr(released, name)}
    assert differing == {"crop_area", "crop_aspect"}
    assert (paper.epochs, paper.batch_size, paper.weight_decay, paper.momentum) == (100, 256, 1e-4, 0.9)
    mobile = recipes.RECIPES["mobilenetv2-paper"]
    assert (mobile.epochs, mobile.batch_size, mobile.warmup_epochs) == (150, 512, 0)


def test_the_modern_recipe_is_procedure_a3():
    recipe = recipes.RECIPES["resnet50-a3"]
    numbers = (recipe.epochs, recipe.batch_size, recipe.learning_rate, recipe.weight_decay, recipe.warmup_epochs)
    assert numbers == (100, 2048, 8e-3, 0.02, 5)
    assert (recipe.size, recipe.resolved_evaluation_size, recipe.evaluation_resize) == (160, 224, 235)
    assert recipe.mix == {"mixup": 0.1, "cutmix": 1.0} and recipe.rand_augment == 6
    assert (recipe.loss, recipe.target_threshold, recipe.label_smoothing) == ("binary_cross_entropy", 0.2, 0)
    variables = NAMobileNetV2(alpha=0.35).trainable_variables
    optimizer = optimization.make_optimizer(recipe, 0.1, variables)
    assert isinstance(optimizer, TimmLamb) and optimizer.weight_decay == 0.02
    assert all(optimizer._use_weight_decay(v) == (len(v.shape) > 1) for v in variables)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_resolves(name):
    assert recipes.get_recipe(name) == recipes.RECIPES[name]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model": "ResNet51"}, "model must be one of .*'ResNet50'.*Received: 'ResNet51'"),
        ({"attention": "sesame"}, "attention must be one of .*'na'.*Received: 'sesame'"),
        ({"schedule": "linear"}, "schedule must be one of .*'cosine'.*Received: 'linear'"),
        ({"batch_size": 0}, "batch_size must be at least 1. Received: 0"),
        ({"epochs": -1}, "epochs must be at least 1. Received: -1"),
        ({"warmup_epochs": 99}, "warmup_epochs must be between 0 and 15. Received: 99"),
        ({"evaluation_resize": 40}, "evaluation_resize must be at least 48. Received: 40"),
        ({"learning_rate": float("nan")}, "learning_rate must be at least 0"),
        ({"label_smoothing": 1.5}, "between 0 and 1"),
        ({"seed": -1}, "seed must be between 0 and .*Received: -1"),
        ({"optimizer": "adam"}, "optimizer must be one of .*'lamb'.*Received: 'adam'"),
        ({"loss": "hinge"}, "loss must be one of .*'binary_cross_entropy'.*Received: 'hinge'"),
        ({"rand_augment": 11}, "rand_augment must be between 0 and 10"),
        ({"ema_decay": 1.5}, "ema_decay must be between 0 and 1"),
        ({"evaluation_size": 64, "evaluation_resize": 48}, "evaluation_resize must be at least 64. Received: 48"),
        (
            {"no_weight_decay": ("bias$", "(")},
            r"no_weight_decay: expected regular expressions. Received: '\(': missing \)",
        ),
        ({"crop_area": (0.5, 0.2)}, "crop_area must be a range"),
        ({"crop_area": (0.5, 1.2)}, "crop_area must be a range"),
    ],
)
def test_bad_overrides_say_what_is_expected(overrides, message):
    with pytest.raises(ValueError, match=message):
        recipes.get_recipe("digits-demo", **overrides)


def test_every_field_is_a_flag():
    flags = "--crop-area 0.2 0.9 --no-flip --no-antialias --clip-norm 1 --model ResNet18 --seed 3 --schedule step"
    arguments = train.parse_arguments([*flags.split(), "--no-weight-decay", '["bias$"]', "--model-options", "{}"])
    recipe = recipes.get_recipe("digits-demo", **recipe_fields.overrides(arguments, recipes.Recipe))
    changed = {name: value for name, value in vars(recipe).items() if value != getattr(DEMO, name)}
    assert changed == {
        "crop_area": (0.2, 0.9),
        "antialias": False,
        "clip_norm": 1.0,
        "model": "ResNet18",
        "model_options": {},
        "seed": 3,
        "schedule": "step",
        "no_weight_decay": ("bias$",),
    }
    fields = {field.name for field in dataclasses.fields(recipes.Recipe)}
    assert fields <= set(vars(arguments))


def test_a_missing_package_is_named_before_any_work(monkeypatch):
    monkeypatch.setattr(train, "NEEDED", ("keras", "not_a_package"))
    with pytest.raises(SystemExit, match=r"not_a_package not installed. Run: pip install -e '.\[train\]'"):
        train.main([])


@pytest.mark.parametrize("synchronized", [False, True])
def test_sync_bn_reaches_every_batch_norm(synchronized):
    model = make_model(DEMO, 10, synchronized, 48)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) == 52 and {layer.synchronized for layer in norms} == {synchronized}
    resnet = make_model(recipes.get_recipe("digits-demo", model="ResNet18"), 10, synchronized, 48)
    norms = [layer for layer in resnet.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {layer.synchronized for layer in norms} == {synchronized}


NO_EFFECT = [
    (
        "digits-demo",
        {"optimizer": "lamb", "momentum": 0.9},
        "momentum",
        "--optimizer=sgd or --optimizer=rmsprop",
    ),
    ("resnet50-paper", {"min_learning_rate": 1e-3}, "min-learning-rate", "--schedule=cosine"),
    ("finetune", {"unfreeze_epoch": 3}, "unfreeze-epoch", "--freeze or --train-only or --freeze-trunk"),
    ("digits-demo", {"decay_epochs": 30}, "decay-epochs", "--schedule=step"),
    ("mobilenetv2-paper", {"decay_factor": 0.5}, "decay-factor", "--schedule=step"),
    ("resnet50-paper", {"target_threshold": 0.2, "mixup": 0.1}, "target-threshold", "--loss=binary_cross_entropy"),
    (
        "resnet50-paper",
        {"target_threshold": 0.2, "loss": "binary_cross_entropy"},
        "target-threshold",
        "--mixup or --cutmix or --label-smoothing",
    ),
    ("resnet50-paper", {"no_weight_decay": ("bias$",), "weight_decay": 0.0}, "no-weight-decay", "--weight-decay"),
    ("resnet50-paper", {"where": "bn$", "attention": "none"}, "where", "--attention"),
    ("resnet50-paper", {"preserve": True, "attention": "none"}, "preserve", "--attention"),
    ("digits-demo", {"patience": 3}, "patience", "--keep-best"),  # which metric it waits for
]


@pytest.mark.parametrize(("name", "given", "flag", "needed"), NO_EFFECT)
def test_a_flag_without_effect_is_refused_and_says_what_it_needs(name, given, flag, needed):
    recipe = recipes.get_recipe(name, **given)
    with pytest.raises(ValueError, match=f"^--{flag} has no effect without {needed}. Add that, or leave --{flag} out"):
        recipes.check_effects(recipe, given)
    # Following the advice, either way.
    examples = {"attention": "na", "freeze": "bn", "train-only": "bn", "freeze-trunk": True, "keep-best": "top1"}
    recipes.check_effects(recipe, set(given) - {flag.replace("-", "_")})
    for advice in needed.split(" or "):
        other, _, value = advice.removeprefix("--").partition("=")
        followed = {**given, other.replace("-", "_"): value or examples.get(other, 0.1)}
        recipes.check_effects(recipes.get_recipe(name, **followed), followed)


def test_every_field_with_a_need_is_tried_above_and_inherited_values_are_no_mistake():
    needing = {field.name for field in dataclasses.fields(recipes.Recipe) if field.metadata["needs"]}
    assert needing == {flag.replace("-", "_") for _, _, flag, _ in NO_EFFECT}
    for name in recipes.RECIPES:
        for given in ({"optimizer": "lamb"}, {"schedule": "cosine"}, {"schedule": "step"}, {"loss": "cross_entropy"}):
            recipes.check_effects(recipes.get_recipe(name, **given), given)


@pytest.mark.parametrize(
    ("name", "given", "resize"),
    [
        ("resnet50-paper", {"size": 128}, 146),  # 128 * 256 / 224
        ("mobilenetv2-released-code", {"size": 96}, 110),
        ("digits-demo", {"size": 96}, 96),
        ("resnet50-a3", {"size": 128}, 235),  # still tested at 224
        ("resnet50-a3", {"evaluation_size": 256}, 269),
        ("resnet50-paper", {"size": 128, "evaluation_resize": 150}, 150),
        ("resnet50-paper", {"batch_size": 8}, 256),
    ],
)
def test_the_evaluations_resize_follows_the_size_unless_it_is_given(name, given, resize):
    assert recipes.get_recipe(name, **given).evaluation_resize == resize


def test_a_run_of_before_the_resize_followed_the_size_keeps_its_own(tmp_path):
    arguments = train.parse_arguments(["--recipe", "resnet50-paper", "--size", "128"])
    assert train.resolved_recipe(arguments, tmp_path).evaluation_resize == 146
    for stored in (256, 146):
        older = dataclasses.replace(recipes.RECIPES["resnet50-paper"], size=128, evaluation_resize=stored)
        decided = run_directory.as_json("resnet50-paper", older, replicas=1, sync_bn=False)
        run_directory.write_text(tmp_path / "recipe.json", json.dumps(decided))
        recipe = train.resolved_recipe(arguments, tmp_path)
        assert run_directory.check(tmp_path, run_directory.as_json("resnet50-paper", recipe, replicas=1, sync_bn=False))


def test_only_given_patterns_must_find_a_variable():
    """A recipe's own may be of another network than --model's."""
    variables = NAMobileNetV2(alpha=0.35).trainable_variables
    optimization.check_found(
        "--no-weight-decay", recipes.RECIPES["mobilenetv2-released-code"].no_weight_decay, variables
    )
    with pytest.raises(
        ValueError, match=r"'biass\$' is found in none of the \d+ variables' paths, such as Conv1/kernel"
    ):
        optimization.check_found("--no-weight-decay", ["bias$", "biass$"], variables)


def test_recipe_overrides():
    with pytest.raises(ValueError, match="recipe must be one of .*digits-demo.*Received: 'demo'"):
        recipes.get_recipe("demo")
    recipe = recipes.get_recipe("digits-demo", attention="none", epochs=3, batch_size=None)
    assert (recipe.attention, recipe.epochs, recipe.batch_size) == (None, 3, 64)
    # Another network does not take MobileNetV2's width multiplier.
    assert recipes.get_recipe("digits-demo", model="ResNet18").model_options == {}
    assert recipes.get_recipe("digits-demo", model="MobileNetV2").model_options == {"alpha": 0.35}


def test_photographs_are_turned_upright_but_not_in_the_papers_recipes_and_not_in_runs_of_before():
    """PyTorch's loaders, with which the papers' numbers were made, look at no Exif tag."""
    assert recipes.get_recipe("digits-demo").exif_orientation
    assert [
        name for name, recipe in recipes.RECIPES.items() if recipe.exif_orientation and "imagenet" in recipe.dataset
    ] == []
    assert recipes.BEFORE["exif_orientation"] is False
