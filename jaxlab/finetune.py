"""python -m jaxlab.finetune: fine-tune AlexNet."""

from jaxlab.optim import FROZEN, TRAINABLE

FREEZE = {
    "features": ((r"conv\d/.*", FROZEN), (r"fc\d/.*", TRAINABLE)),
    "backbone": ((r"fc8/.*", TRAINABLE), (r".*", FROZEN)),
    "none": ((r".*", TRAINABLE),),
}
