"""What the paper and mmdetection say of training detectors, as data; recipes and Model Garden's experiments take it."""

# Section 5.3 of the paper.
PAPER = {
    "batch_size": 16,  # "with a total of 16 images per mini-batch (that is 2 images per GPU)"
    "epochs": 24,  # "All detection models are trained for 24 epochs"
    "drop_epochs": (18, 22),  # "reduced by a factor of 10 at the 18th and 22nd epochs"
    "weight_decay": 1e-4,  # "synchronized SGD with a weight decay of 0.0001
    "momentum": 0.9,  # and a momentum of 0.9"
    "size": 800,  # "resized to make the shorter side to be 800 pixels"
}
# "We initialize the learning rate to 0.02 for Cascade R-CNN and 0.01 for RetinaNet"
LEARNING_RATES = {"retinanet": 0.01, "cascade_rcnn": 0.02}
# Where the paper is silent: mmdetection's configs/cascade_rcnn_r50_fpn_1x.py and retinanet_r50_fpn_1x.py.
MMDETECTION = {
    "longer_size": 1333,  # img_scale=(1333, 800)
    "warmup_steps": 500,  # warmup_iters=500
    "warmup_factor": 1 / 3,  # warmup_ratio=1.0 / 3
    "clip_norm": 35.0,  # grad_clip=dict(max_norm=35, norm_type=2)
}
COCO_TRAINING_IMAGES = 118_287
