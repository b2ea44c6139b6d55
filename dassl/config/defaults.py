"""Every key of the engine with its default. A method adds its own keys beside its own code."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .node import CfgNode as CN

_C = CN()
_C.VERSION = 1
_C.OUTPUT_DIR = "./output"  # the run's folder
_C.OVERWRITE = False  # replace what another run left in OUTPUT_DIR
_C.RESUME = ""  # a run's folder: go on from its last epoch; an error if there is none
_C.SEED = -1  # negative: another result every time
_C.USE_CUDA = True
_C.VERBOSE = True  # print the data set's and the model's numbers

# Images
_C.INPUT = CN()
_C.INPUT.SIZE = (224, 224)  # height, width
_C.INPUT.INTERPOLATION = "bilinear"  # bilinear | bicubic | nearest
_C.INPUT.TRANSFORMS = ()  # names in dassl.data.transforms.CHOICES
_C.INPUT.NO_TRANSFORM = False  # items carry no "img"
_C.INPUT.PIXEL_MEAN = [0.485, 0.456, 0.406]
_C.INPUT.PIXEL_STD = [0.229, 0.224, 0.225]
_C.INPUT.CROP_PADDING = 4  # random_crop: pixels
_C.INPUT.RRCROP_SCALE = (0.08, 1.0)  # random_resized_crop: share of the area
_C.INPUT.CUTOUT_N = 1  # cutout: holes
_C.INPUT.CUTOUT_LEN = 16  # cutout: pixels
_C.INPUT.GN_MEAN = 0.0  # gaussian_noise
_C.INPUT.GN_STD = 0.15
_C.INPUT.RANDAUGMENT_N = 2  # randaugment: operations per image
_C.INPUT.RANDAUGMENT_M = 10  # randaugment: magnitude of 0–30
_C.INPUT.COLORJITTER_B = 0.4  # brightness, contrast, saturation, hue
_C.INPUT.COLORJITTER_C = 0.4
_C.INPUT.COLORJITTER_S = 0.4
_C.INPUT.COLORJITTER_H = 0.1
_C.INPUT.RGS_P = 0.2  # randomgrayscale: probability
_C.INPUT.GB_P = 0.5  # gaussian_blur: probability
_C.INPUT.GB_K = 21  # gaussian_blur: kernel size, odd
_C.INPUT.ON_DECODE_ERROR = "fail"  # fail | skip (the number of skipped images is recorded)

# Data set
_C.DATASET = CN()
_C.DATASET.ROOT = ""  # the folder that holds the data sets' folders
_C.DATASET.NAME = ""  # of its reader
_C.DATASET.LABEL = ""  # what tables call it; its config file's name, unless that says otherwise
_C.DATASET.NUM_SHOTS = -1  # images per class; -1: all
_C.DATASET.SUBSAMPLE_CLASSES = "all"  # all | base | new
_C.DATASET.CONFIG = ""  # the trainers' config that protocols take; empty: each trainer's usual one
_C.DATASET.TEMPLATE = ""  # hand-written prompt with one {}; empty: the data set's own
_C.DATASET.SENTENCES = ""  # a JSON file, {class name: [sentence, …]}, in place of templates
_C.DATASET.NAME_TOKENS = 0  # class names are cut to as many tokens; 0: none is
_C.DATASET.SOURCE_DOMAINS = ()
_C.DATASET.TARGET_DOMAINS = ()
_C.DATASET.NUM_LABELED = -1  # semi-supervised sets: labeled images in total
_C.DATASET.VAL_PERCENT = 0.1  # share of the training images held out where a set has no val
_C.DATASET.STL10_FOLD = -1
_C.DATASET.CIFAR_C_TYPE = ""
_C.DATASET.CIFAR_C_LEVEL = 1
_C.DATASET.ALL_AS_UNLABELED = False

# Data loaders
_C.DATALOADER = CN()
_C.DATALOADER.NUM_WORKERS = 4
_C.DATALOADER.K_TRANSFORMS = 1  # training views per image
_C.DATALOADER.RETURN_IMG0 = False  # also give the image without augmentation
_C.DATALOADER.DECODED_GB = 2.0  # decoded training images kept in memory, by all workers together
_C.DATALOADER.FEATURE_CACHE = ".cache"  # folder, below DATASET.ROOT unless absolute; "": none
_C.DATALOADER.FEATURE_CACHE_GB = 8.0  # the least recently used features make room
_C.DATALOADER.TRAIN_X = CN()
_C.DATALOADER.TRAIN_X.SAMPLER = "RandomSampler"
_C.DATALOADER.TRAIN_X.BATCH_SIZE = 32
_C.DATALOADER.TRAIN_X.N_DOMAIN = 0  # RandomDomainSampler: domains per batch; 0: all
_C.DATALOADER.TRAIN_X.N_INS = 16  # RandomClassSampler: images per class and batch
_C.DATALOADER.TRAIN_U = CN()
_C.DATALOADER.TRAIN_U.SAME_AS_X = True
_C.DATALOADER.TRAIN_U.SAMPLER = "RandomSampler"
_C.DATALOADER.TRAIN_U.BATCH_SIZE = 32
_C.DATALOADER.TRAIN_U.N_DOMAIN = 0
_C.DATALOADER.TRAIN_U.N_INS = 16
_C.DATALOADER.TEST = CN()
_C.DATALOADER.TEST.SAMPLER = "SequentialSampler"
_C.DATALOADER.TEST.BATCH_SIZE = 32

# Model
_C.MODEL = CN()
_C.MODEL.INIT_WEIGHTS = ""  # a checkpoint file whose parameters training starts from
_C.MODEL.BACKBONE = CN()
_C.MODEL.BACKBONE.NAME = ""
_C.MODEL.BACKBONE.ARCHITECTURE = ""  # an OpenCLIP model's name, where a file doesn't say it
_C.MODEL.BACKBONE.PRETRAINED = True
_C.MODEL.HEAD = CN()
_C.MODEL.HEAD.NAME = ""
_C.MODEL.HEAD.HIDDEN_LAYERS = ()
_C.MODEL.HEAD.ACTIVATION = "relu"
_C.MODEL.HEAD.BN = True
_C.MODEL.HEAD.DROPOUT = 0.0

# Optimisation
_C.OPTIM = CN()
_C.OPTIM.NAME = "adam"  # sgd | adam | amsgrad | adamw | radam | rmsprop
_C.OPTIM.LR = 0.0003
_C.OPTIM.WEIGHT_DECAY = 5e-4
_C.OPTIM.MOMENTUM = 0.9
_C.OPTIM.SGD_DAMPNING = 0.0
_C.OPTIM.SGD_NESTEROV = False
_C.OPTIM.RMSPROP_ALPHA = 0.99
_C.OPTIM.ADAM_BETA1 = 0.9
_C.OPTIM.ADAM_BETA2 = 0.999
_C.OPTIM.ADAM_EPS = 1e-8
_C.OPTIM.STAGED_LR = False  # children not in NEW_LAYERS learn at LR * BASE_LR_MULT
_C.OPTIM.NEW_LAYERS = ()
_C.OPTIM.BASE_LR_MULT = 0.1
_C.OPTIM.LR_SCHEDULER = "single_step"  # single_step | multi_step | cosine
_C.OPTIM.STEPSIZE = (-1,)  # epochs; 0 or less with single_step: MAX_EPOCH
_C.OPTIM.GAMMA = 0.1
_C.OPTIM.MAX_EPOCH = 10
_C.OPTIM.WARMUP_EPOCH = -1  # 0 or less: no warm-up
_C.OPTIM.WARMUP_TYPE = "linear"  # linear | constant
_C.OPTIM.WARMUP_CONS_LR = 1e-5  # constant: the rate of every parameter group
_C.OPTIM.WARMUP_MIN_LR = 1e-5  # linear: the rate of the first epoch
_C.OPTIM.WARMUP_RECOUNT = True  # the schedule after the warm-up counts from 0

# Training
_C.TRAIN = CN()
_C.TRAIN.CHECKPOINT_FREQ = 0  # epochs; 0 or less: the last epoch alone
_C.TRAIN.PRINT_FREQ = 10  # batches
_C.TRAIN.TRACKERS = ()  # wandb, mlflow, beside TensorBoard
_C.TRAIN.COUNT_ITER = "train_x"  # train_x | train_u | smaller_one

# Evaluation
_C.TEST = CN()
_C.TEST.EVALUATOR = "Classification"
_C.TEST.PER_CLASS_RESULT = False
_C.TEST.COMPUTE_CMAT = False  # save the confusion matrix as cmat.pt
_C.TEST.NO_TEST = False
_C.TEST.SPLIT = "test"  # test | val: what the final evaluation runs on
_C.TEST.FINAL_MODEL = "last_step"  # last_step | best_val
_C.TEST.CORRUPTION = "none"  # none, or a name in dassl.config.severities: of the tested images
_C.TEST.SEVERITY = 3  # of the corruption: 1 to 5
_C.TEST.SAVE_PREDICTIONS = False  # save logits, labels and paths as predictions.npz

# Methods put their nodes here.
_C.TRAINER = CN()
_C.TRAINER.NAME = ""


_EXTENSIONS: list[Callable[[CN], None]] = []


def get_cfg_default() -> CN:
    """Return a fresh copy of the defaults."""
    return _C.clone()


def add_defaults(extend: Callable[[CN], None]) -> None:
    """Have `extend` add keys to `full_defaults`: those of code that isn't the engine's."""
    if extend not in _EXTENSIONS:
        _EXTENSIONS.append(extend)


def extensions() -> tuple[Callable[[CN], None], ...]:
    """Return what `full_defaults` calls, in its order."""
    return tuple(_EXTENSIONS)


def full_defaults() -> CN:
    """Return a fresh copy of all defaults, with those that were added."""
    cfg = get_cfg_default()
    for extend in _EXTENSIONS:
        extend(cfg)
    return cfg


def clean_cfg(cfg: CN, trainer: str, keep: Iterable[str] = ()) -> None:
    """Remove the nodes of other methods from `cfg.TRAINER`, for a short print-out.

    A node stays if its name is `trainer`'s or one of its parts between underscores, in capitals,
    or in `keep`.
    """
    wanted = {"NAME", trainer.upper(), *trainer.upper().split("_"), *keep}
    for name in [name for name in cfg.TRAINER if name not in wanted]:
        del cfg.TRAINER[name]
