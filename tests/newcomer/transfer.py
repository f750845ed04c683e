"""The transfer exercise, as a newcomer wrote it from the README and docs/ alone.

A test runs it. It has at most forty lines of code, of the width of a student's screen.
"""

from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw

import jaxlab

# 1. The layers
print(jaxlab.summary(jaxlab.AlexNet(num_classes=5), (224, 224, 3)))

# 2. Preprocessing
data = jaxlab.load_data("mnist5k", train_size=60, test_size=100)
for size in 224, 320:
    preprocess = jaxlab.Preprocess(size)
    x = preprocess(data.train.images[::6])
    print(size, data.train.images.shape, x.shape, x.dtype)
    labels = data.train.labels[::6]
    jaxlab.plot_images(x, labels, preprocess=preprocess).savefig(f"at{size}.png")


# 3. Digits 5-9 as a folder of pictures, with ImageNet's frozen convolutions
def write_folder(name, digits):
    """Write the digits as NAME/SPLIT/CLASS/NUMBER.png."""
    for split, part in ("train", data.train), ("test", data.test):
        for i in np.flatnonzero(np.isin(part.labels, digits)):
            path = Path(name, split, str(part.labels[i]), f"{i}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(part.images[i, :, :, 0]).save(path)
    return name


settings = dict(image_size=63, epochs=1, batch_size=10, checkpoint_every=0)
first = jaxlab.fine_tune(
    write_folder("digits59", range(5, 10)),
    freeze="features",
    out="runs/first",
    **settings,
)

# 4. Digits 0-4: only the head
low, then = write_folder("digits04", range(5)), {"weights": first.folder}
settings |= {"freeze": "backbone", "lr": 1e-3}
second = jaxlab.fine_tune(low, **then, out="runs/second", **settings)
print("test accuracy on 0-4:", second.test_accuracy)
_, before = jaxlab.create_model("alexnet", num_classes=5, **then)
_, after = jaxlab.create_model("alexnet", num_classes=5, weights=second.folder)
same = jax.tree.map(
    lambda a, b: bool((a == b).all()), before["params"], after["params"]
)
assert all(all(leaf.values()) == (name != "fc8") for name, leaf in same.items())

# 5. A new head by hand
_, new = jaxlab.create_model("alexnet", num_classes=10, **then)
print("head:", *(v["params"]["fc8"]["kernel"].shape for v in (before, new)))

# 6. Curves and mistakes
jaxlab.plot_curves(second).savefig("curves.png")
test = jaxlab.load_data(low, image_size=63).test
guess = second.classifier.probabilities(test.images).argmax(1)
wrong = guess != test.labels
jaxlab.plot_images(
    test.images[wrong], test.labels[wrong], predictions=guess[wrong]
).savefig("mistakes.png")

# 7. Load it again, and predict a drawn digit
picture = Image.new("L", (28, 28))
ImageDraw.Draw(picture).line((14, 5, 14, 23), fill=255, width=3)
print(jaxlab.Classifier.load("runs/second").predict(np.array(picture), top=3))
