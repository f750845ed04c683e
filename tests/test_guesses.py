"""Test that names of other programs lead to the right setting, or to none.

The lists are the flags of torchvision's reference script for classification, of timm's
train.py, of Ultralytics' train, and of Keras' fit and its optimizers; those that exist
here under the same name are left out.
"""

import pytest

from jaxlab.config import Config
from jaxlab.data.load import load
from jaxlab.errors import UsageError, did_you_mean

MEANT = {
    "dataset": "data data-path image_dir img_dir data-root",
    "validation-fraction": "val-split validation-split validation_split val-fraction",
    "train-size": "train-num-samples",
    "image-size": "img-size imgsz input-size train-crop-size val-crop-size",
    "workers": "j num-workers num_workers",
    "model": "arch",
    "weights": "pretrained pretrained-path initial-checkpoint model_path",
    "freeze": "freeze-layers freeze_backbone",
    "resume": "resume_from resume_from_checkpoint",
    "precision": "amp amp-dtype model-dtype",
    "epochs": "num-epochs num_train_epochs epoch n-epochs",
    "batch-size": "b batch batchsize per_device_train_batch_size",
    "optimizer": "opt optim",
    "lr": "learning-rate learning_rate learningrate lr0 lr-base",
    "l2": "wd weight-decay weight_decay weight_decay_rate",
    "class-weights": "class_weight class-weight",
    "schedule": "lr-scheduler sched cos_lr scheduler lr_scheduler_type",
    "lr-step": "lr-step-size decay-epochs step-size",
    "lr-gamma": "gamma decay-rate",
    "warmup-epochs": "lr-warmup-epochs warmup_epochs",
    "patience": "early-stopping early-stopping-patience",
    "seed": "random-seed random_state",
    "out": "output output-dir out-dir project name experiment",
    "overwrite": "exist_ok overwrite_output_dir",
    "checkpoint-every": "save_period",
    "keep": "checkpoint-hist",
}
# Nothing here does what they do.
NONE = """
device label-smoothing mixup-alpha cutmix-alpha lr-warmup-method lr-warmup-decay lr-min
print-freq start-epoch cache-dataset sync-bn test-only auto-augment ra-magnitude
augmix-severity random-erase world-size dist-url model-ema model-ema-steps
model-ema-decay use-deterministic-algorithms interpolation val-resize-size
train-resize-size clip-grad-norm ra-sampler ra-reps backend use-v2 norm-weight-decay
bias-weight-decay transformer-embedding-decay
train-split dataset-download class-map input-img-mode input-key target-key no-resume-opt
num-classes gp in-chans crop-pct mean std validation-batch-size channels-last fuser
grad-accum-steps grad-checkpointing fast-norm model-kwargs head-init-scale
head-init-bias torchcompile torchscript amp-impl no-ddp-bb synchronize-step local-rank
opt-eps opt-betas clip-grad clip-mode layer-decay opt-kwargs sched-on-updates
lr-base-size lr-base-scale lr-noise lr-noise-pct lr-noise-std lr-cycle-mul
lr-cycle-decay lr-cycle-limit lr-k-decay warmup-lr min-lr epoch-repeats
decay-milestones warmup-prefix cooldown-epochs no-aug train-crop-mode scale ratio hflip
vflip color-jitter color-jitter-prob grayscale-prob aa aug-repeats aug-splits jsd-loss
bce-loss bce-sum bce-target-thresh reprob remode recount resplit mixup cutmix
cutmix-minmax mixup-prob mixup-switch-prob mixup-mode mixup-off-epoch smoothing
train-interpolation drop drop-connect drop-path drop-block bn-momentum bn-eps dist-bn
split-bn worker-seeding log-interval recovery-interval save-images pin-mem no-prefetcher
eval-metric tta use-multi-epochs-loader log-wandb
time save cache deterministic verbose single_cls classes rect multi_scale close_mosaic
profile lrf warmup_momentum warmup_bias_lr box cls dfl nbs overlap_mask mask_ratio
dropout val plots hsv_h hsv_s hsv_v degrees translate shear perspective flipud fliplr
mosaic copy_paste erasing unfreeze test
x y callbacks validation_data shuffle sample_weight initial_epoch steps_per_epoch
validation_steps validation_freq
lr-decay-style img_dim_order max-steps eval-batch-size val_dir unfreeze-layers head-lr
"""


def said_of(flag):
    with pytest.raises(UsageError) as caught:
        from jaxlab.cli import flags

        flags.parse(Config, [f"--{flag}", "1"], prog="finetune", about="")
    return caught.value.text


@pytest.mark.parametrize("meant", MEANT)
def test_a_flag_of_another_program_leads_to_ours(meant):
    for flag in MEANT[meant].split():
        if flag.replace("-", "_") not in Config.__dataclass_fields__:
            found = said_of(flag)
            assert found == f"--{flag}: unknown flag; did you mean --{meant}?"


def test_a_flag_without_a_counterpart_leads_nowhere():
    wrong = {
        flag: said
        for flag in NONE.split()
        if (said := said_of(flag)) != f"--{flag}: unknown flag; see --help"
    }
    assert not wrong


@pytest.mark.parametrize(
    "typed, meant",
    [
        ("epcohs", "epochs"),
        ("ephocs", "epochs"),
        ("batchsize", "batch-size"),
        ("optimzer", "optimizer"),
        ("leraning-rate", "lr"),
        ("momentun", "momentum"),
        ("seeds", "seed"),
        ("frezee", "freeze"),
    ],
)
def test_a_slip_of_the_hand_is_understood(typed, meant):
    assert said_of(typed).endswith(f"; did you mean --{meant}?")


@pytest.mark.parametrize(
    "settings, meant",
    [
        ({"optimizer": "adamw"}, "adam"),
        ({"optimizer": "SGD"}, "sgd"),
        ({"optimizer": "torch.optim.SGD"}, "sgd"),
        ({"optimizer": "optax.adam"}, "adam"),
        ({"precision": "fp16"}, "bfloat16"),
        ({"precision": "bf16"}, "bfloat16"),
        ({"precision": "float16"}, "bfloat16"),
        ({"precision": "fp32"}, "float32"),
        ({"model": "AlexNet"}, "alexnet"),
        ({"model": "alex_net"}, "alexnet"),
        ({"model": "torchvision.models.alexnet"}, "alexnet"),
        ({"schedule": "CosineAnnealingLR"}, "cosine"),
        ({"schedule": "StepLR"}, "step"),
        ({"freeze": "Conv3"}, "conv3"),
    ],
)
def test_another_word_for_a_choice_is_understood(settings, meant):
    with pytest.raises(UsageError) as caught:
        Config(**settings)
    assert str(caught.value).endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize(
    "weights, meant",
    [
        ("IMAGENET1K_V1", "imagenet"),
        ("AlexNet_Weights.IMAGENET1K_V1", "imagenet"),
        ("DEFAULT", "imagenet"),
        ("True", "imagenet"),
        ("ImageNet", "imagenet"),
        ("imagenet_conv", "imagenet-conv"),
        ("random", "none"),
    ],
)
def test_torchvision_s_words_for_weights_are_understood(weights, meant):
    from jaxlab.config import resolved

    with pytest.raises(UsageError) as caught:
        resolved(Config(weights=weights))
    assert str(caught.value).endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize(
    "name, meant",
    [
        ("MNIST", "mnist"),
        ("Mnist5k", "mnist5k"),
        ("fashion-mnist", "fashion_mnist"),
        ("FashionMNIST", "fashion_mnist"),
        ("CIFAR-10", "cifar10"),
        ("CIFAR100", "cifar100"),
        ("ImageNet", "imagenet2012"),
        ("SVHN", "svhn_cropped"),
        ("STL10", "stl10"),
        ("Flowers102", "oxford_flowers102"),
        ("OxfordIIITPet", "oxford_iiit_pet"),
        ("Food101", "food101"),
        ("EuroSAT", "eurosat"),
        ("StanfordCars", "cars196"),
        ("PCAM", "patch_camelyon"),
        ("DTD", "dtd"),
    ],
)
def test_torchvision_s_names_of_datasets_are_understood(name, meant):
    with pytest.raises(UsageError) as caught:
        load(name, None, offline=True)
    assert str(caught.value).endswith(f"; did you mean {meant}?")


def test_a_guess_needs_almost_the_same_letters():
    assert did_you_mean("out", ["--out"]) == "; did you mean --out?"
    assert did_you_mean("dropout", ["out"]) == "; see --help"
    assert did_you_mean("Batch Size", ["--batch-size"]).endswith("--batch-size?")
