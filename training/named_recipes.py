"""The named recipes: fields of recipes.Recipe as data.

Every number stands with its source:

    paper          "Attention meets Normalization and Beyond", section 5.1
    released code  13952522076/NANet: imagenet.py (ResNet), main_mobile.py (MobileNetV2)

The two disagree in places, so both are here under their names. A third is how one would train today: procedure A3 of
"ResNet strikes back" (arXiv 2110.00476). None of the ImageNet recipes has been run by us.

The last two start from trained weights and are for some thousand photographs of one's own. Their sources:

    Li et al.      "Rethinking the Hyperparameters for Fine-tuning" (arXiv 2002.11770): what fine-tuning commonly takes
    Kornblith      "Do Better ImageNet Models Transfer Better?" (arXiv 1805.08974)
    BiT            "Big Transfer", the BiT-HyperRule (arXiv 1912.11370)
    Keras' guide   "Transfer learning & fine-tuning", keras.io/guides/transfer_learning
"""

# PyTorch's and the authors' loaders look at no Exif tag.
IMAGENET = {
    **{"attention": "na", "dataset": "imagenet2012", "size": 224, "evaluation_resize": 256},
    "exif_orientation": False,
}

RESNET50_PAPER = dict(
    **IMAGENET,
    model="ResNet50",
    epochs=100,  # "for 100 epochs"
    batch_size=256,  # "with a batch size of 256 (i.e., 32 images per GPU)"
    learning_rate=0.1,  # "stating at a learning rate of 0.1"
    schedule="step",  # "decreasing it by 10 every 30 epochs"
    weight_decay=1e-4,  # "a weight decay of 0.0001 and a momentum of 0.9"
)
MOBILENETV2_PAPER = dict(
    **IMAGENET,
    model="MobileNetV2",
    epochs=150,  # "for 150 epochs"
    batch_size=512,  # "with a batch size of 512 (i.e., 64 images per GPU)"
    learning_rate=0.1,  # "stating at a learning rate of 0.1"
    schedule="cosine",  # "adjusting it using a cosine decay method"
    weight_decay=1e-4,  # "a weight decay of 0.0001 and a momentum of 0.9"
)
# NANet's pipelines: random area and aspect of the crop.
RELEASED_CROP = {"crop_area": (0.1, 1.0), "crop_aspect": (0.8, 1.25)}

NAMED = {
    # Ours; the learning rate was chosen on the held-out digits themselves: a demonstration, not a benchmark.
    "digits-demo": dict(
        model="MobileNetV2",
        attention="na",
        model_options={"alpha": 0.35},
        dataset="digits",
        size=48,
        evaluation_resize=48,
        crop_area=(0.7, 1.0),
        crop_aspect=(0.85, 1.18),
        flip=False,  # a mirrored digit is another sign
        epochs=15,
        batch_size=64,
        learning_rate=0.05,
        schedule="cosine",
        warmup_epochs=2,
        weight_decay=1e-4,
    ),
    "resnet50-paper": RESNET50_PAPER,
    "mobilenetv2-paper": MOBILENETV2_PAPER,
    # imagenet.py: the paper's numbers otherwise; every parameter is decayed, NA's two included.
    "resnet50-released-code": {**RESNET50_PAPER, **RELEASED_CROP},
    # main_mobile.py: warm-up and a weaker decay, which spares batch norms, depthwise convolutions and whatever has
    # "bias" in its PyTorch name; NA's beta is called bias2 there, its gamma weight2.
    "mobilenetv2-released-code": dict(
        MOBILENETV2_PAPER,
        **RELEASED_CROP,
        warmup_epochs=5,
        weight_decay=4e-5,
        no_weight_decay=(r"(?i)(bn|bn_conv1)/(gamma|beta)$", r"depthwise/kernel$", r"/bias$", r"attention/beta$"),
    ),
    # "ResNet strikes back", table 2, column A3, and the authors' commands for it. It reached 78.1 % with a plain
    # ResNet50. Ours resizes bilinearly, not bicubically, and mixes each example by itself (na_keras.data.augmentation).
    "resnet50-a3": dict(
        RESNET50_PAPER,
        epochs=100,
        size=160,  # train at 160,
        evaluation_size=224,  # test at 224
        evaluation_resize=235,  # test crop ratio .95: 224 / .95
        batch_size=2048,
        optimizer="lamb",
        learning_rate=8e-3,
        schedule="cosine",
        warmup_epochs=5,
        weight_decay=0.02,
        no_weight_decay=(r"/(gamma|beta|bias)$",),  # timm spares whatever has one dimension
        clip_norm=1.0,  # timm's Lamb clips by default (max_grad_norm)
        loss="binary_cross_entropy",
        target_threshold=0.2,  # timm's commands: --bce-target-thresh
        mixup=0.1,
        cutmix=1.0,
        rand_augment=6.0,  # "rand-m6-mstd0.5-inc1"
    ),
}

# Trained weights of ImageNet, photographs in folders. No attention, as for any other network that --model names; a
# module of one's choice is `--attention`.
PHOTOGRAPHS = dict(
    model="keras.applications.MobileNetV2",  # small enough for a CPU; any other is as good to the numbers below
    weights="imagenet",
    attention=None,
    dataset="folder",
    size=224,  # what the weights were trained at
    evaluation_resize=256,  # Kornblith: the evaluation of ImageNet, a central crop
    batch_size=64,  # Keras' guide
    schedule="cosine",  # Kornblith
)
NAMED |= {
    "finetune": dict(
        PHOTOGRAPHS,
        # The trunk: 0.0025, which is Li et al.'s customary 0.01 of a batch of 256, in proportion to this one (Goyal et
        # al., arXiv 1706.02677). The classifier begins from nothing and has ten times that, as in Caffe's example of
        # fine-tuning ("finetune_flickr_style": lr_mult 10).
        learning_rate=0.025,
        trunk_learning_rate=0.1,
        momentum=0.9,  # all of the above
        weight_decay=1e-4,  # Li et al.
        # PyTorch's, with which all of the above trained. keras.applications' MobileNetV2 has .999: after some hundred
        # steps the stored statistics are still those of ImageNet, and the validation is of another network.
        batch_norm_momentum=0.9,
        # 20 epochs of the head and 10 of everything in Keras' guide, for 9,300 photographs; of 5,000 photographs BiT's
        # 500 steps of 512 would be 51.
        epochs=30,
    ),
    # The classifier, and attention that the weights have not; all else stays as it came. Keras' guide throughout.
    "finetune-head": dict(
        PHOTOGRAPHS,
        freeze_trunk=True,
        optimizer="adamw",  # Adam: without weight decay they are the same
        weight_decay=0.0,
        learning_rate=1e-3,  # Keras' default, which the guide takes
        epochs=20,
    ),
}
