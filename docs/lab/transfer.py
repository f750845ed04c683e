# %% [markdown]
# # Transfer learning
#
# A network that has learned to see does not start from nothing when it meets new
# pictures. In this notebook you take AlexNet's convolutions, which were trained on
# ImageNet's photographs, and teach the network digits. You freeze parts of it, replace
# its last layer, adapt the images, train, and look inside. At the end it reads a digit
# that you draw.
#
# You know the recipe from PyTorch: load, `requires_grad = False`, a new
# `classifier[6]`, `transforms.Compose`, and a loop. The steps are the same here.
#
# Cells under **Your turn** are yours to write. Everything above the first one runs as
# it stands. `transfer_solutions.ipynb` has a solution of each, and all pictures.
#
# It runs where `pip install -e '.[embedded]'` was run in a clone of the repository,
# with Jupyter. Once installed, it needs no network. On two slow cores it takes about
# eight minutes, and it writes over 1 GB into `runs/transfer`.

# %%
import json
import os
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw
from safetensors.numpy import save_file

import jaxlab
from pretrained import to_state_dict

FAST = os.environ.get("JAXLAB_FAST") == "1"  # small settings, to try the notebook
SIZE = 63 if FAST else 224
EPOCHS = 1 if FAST else 5
FOLDER = Path("runs/transfer-fast" if FAST else "runs/transfer")
answers = {}  # numbers of this notebook; the last cell prints them

# %% [markdown]
# ## The network, and its three zones
#
# With torchvision installed, `print(torchvision.models.alexnet())` shows this:
#
# ```
# AlexNet(
#   (features): Sequential(
#     (0): Conv2d(3, 64, kernel_size=(11, 11), stride=(4, 4), padding=(2, 2))
#     (1): ReLU(inplace=True)
#     (2): MaxPool2d(kernel_size=3, stride=2, padding=0, dilation=1, ceil_mode=False)
#     (3): Conv2d(64, 192, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2))
#     (4): ReLU(inplace=True)
#     (5): MaxPool2d(kernel_size=3, stride=2, padding=0, dilation=1, ceil_mode=False)
#     (6): Conv2d(192, 384, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
#     (7): ReLU(inplace=True)
#     (8): Conv2d(384, 256, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
#     (9): ReLU(inplace=True)
#     (10): Conv2d(256, 256, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
#     (11): ReLU(inplace=True)
#     (12): MaxPool2d(kernel_size=3, stride=2, padding=0, dilation=1, ceil_mode=False)
#   )
#   (avgpool): AdaptiveAvgPool2d(output_size=(6, 6))
#   (classifier): Sequential(
#     (0): Dropout(p=0.5, inplace=False)
#     (1): Linear(in_features=9216, out_features=4096, bias=True)
#     (2): ReLU(inplace=True)
#     (3): Dropout(p=0.5, inplace=False)
#     (4): Linear(in_features=4096, out_features=4096, bias=True)
#     (5): ReLU(inplace=True)
#     (6): Linear(in_features=4096, out_features=1000, bias=True)
#   )
# )
# ```
#
# `jaxlab.summary` shows the same network. Layers have names instead of numbers. The
# shape of an image must be given, because a Flax module knows no shapes before it sees
# an input; in return the table has the shape behind every operation.

# %%
jaxlab.summary(jaxlab.AlexNet(), (224, 224, 3))

# %% [markdown]
# The network has three zones:
#
# - **Convolutional features**, conv1 to conv5. They learn edges and colours first, then
#   textures, then parts of objects. The first layers suit almost any picture.
# - **Hidden fully connected layers**, fc6 and fc7. They learn which parts occur
#   together, and where. That suits one kind of pictures.
# - **Head**, fc8. It has one score for each class, and fits these classes only.
#
# This is why transfer works, and why we freeze from the front: the further back a layer
# is, the more it belongs to the old task. Notice where the parameters are. The
# convolutions have few, and see every picture; the hidden layers have most of them.

# %% [markdown]
# ## Adapt the images
#
# The convolutions expect what they were trained on: colour photographs of 224 by 224
# pixels, with the mean and the standard deviation of ImageNet. A digit is grey and 28
# by 28 pixels. So four transforms are needed. The digits are installed with the
# package; none of them is downloaded.

# %%
data = (
    jaxlab.load_data("mnist5k", train_size=200, test_size=60)
    if FAST
    else jaxlab.load_data("mnist5k")
)
print(data)
grey = data.test.images[:1]
print("one digit:", grey.dtype, grey.shape, "label", data.test.labels[0])

# %% [markdown]
# **Your turn.** Write the transforms with NumPy and Pillow: `rgb` has the grey channel
# three times, `resized` is `rgb` at 224 by 224 pixels (`Image.BILINEAR`), `scaled` has
# values from 0 to 1, and `normalised` is `scaled` less `MEAN`, divided by `STD`. They
# are the lines of `transforms.Compose`, except that the channels come last.

# %%
MEAN = np.float32([0.485, 0.456, 0.406])
STD = np.float32([0.229, 0.224, 0.225])

# %% tags=["task"]
rgb = ...  # TODO: uint8[28, 28, 3]
resized = ...  # TODO: uint8[224, 224, 3]
scaled = ...  # TODO: float32[224, 224, 3]
normalised = ...  # TODO: float32[224, 224, 3]

# %% tags=["solution"]
rgb = np.repeat(grey[0], 3, axis=2)
resized = np.asarray(Image.fromarray(rgb).resize((224, 224), Image.BILINEAR))
scaled = resized.astype(np.float32) / 255
normalised = (scaled - MEAN) / STD

# %% [markdown]
# `jaxlab.Preprocess` does all four for a batch of images, inside the compiled step.
# Both must agree but for the rounding of the last digits.

# %%
preprocess = jaxlab.Preprocess(image_size=224)
inputs = preprocess(grey)
answers["preprocess_difference"] = float(abs(inputs[0] - normalised).max())
print("largest difference:", answers["preprocess_difference"])

# %% [markdown]
# Here is what each transform does. The colours of the last picture are an artefact:
# normalised values are negative where the image is dark, and are shown here from their
# lowest to their highest. The mean and the deviation differ by channel, so grey becomes
# slightly coloured.

# %%
larger = np.asarray(Image.fromarray(rgb).resize((320, 320), Image.BILINEAR))
low, high = normalised.min(), normalised.max()
stages = {
    "grey, 28×28×1": grey[0, :, :, 0],
    "RGB, 28×28×3": rgb,
    "resized, 224×224×3": resized,
    "resized, 320×320×3": larger,
    f"normalised, {low:.1f} to {high:.1f}": (normalised - low) / (high - low),
}
figure, panels = plt.subplots(1, 5, figsize=(12, 2.8))
for axes, (title, image) in zip(panels, stages.items(), strict=True):
    axes.imshow(image, cmap="gray")
    axes.set_title(title, size=9)
    axes.tick_params(labelsize=7)
figure.tight_layout()
plt.show()

# %% [markdown]
# `jaxlab.plot_images` undoes the normalisation, if it is told which one it was. So you
# can always look at what the network really sees.

# %%
jaxlab.plot_images(
    preprocess(data.test.images[:8]), data.test.labels[:8], preprocess=preprocess
)

# %% [markdown]
# Other sizes work too. The convolutions slide over any image, and `avgpool` reduces
# what they return to 6 by 6, so that fc6 always gets 9,216 numbers. Compare the shapes
# at 320 pixels with those above. A larger image shows more detail, and costs more time.

# %%
print(jaxlab.summary(jaxlab.AlexNet(), (320, 320, 3)))

# %% [markdown]
# ## Replace the head
#
# ImageNet has 1,000 classes, so fc8 has 1,000 outputs. We have five: first the digits 5
# to 9. In PyTorch you write `model.classifier[6] = nn.Linear(4096, 5)`. In Flax the
# module holds no weights. They are `variables["params"]`, a dict of layers, and a
# network with another head is another module and another dict, which shares the other
# layers.
#
# **Your turn.** `base` and `variables` are given. Make `model` with
# `jaxlab.create_model`, for five classes, and a dict `params` with all layers of
# `variables` but the fc8 of the new network.

# %%
base, variables = jaxlab.create_model("alexnet", weights="imagenet-conv")
print({name: leaf.shape for name, leaf in variables["params"]["fc8"].items()})

# %% tags=["task"]
model, fresh = ...  # TODO: a network for 5 classes, and its variables
params = ...  # TODO: all layers of `variables`, but the new head

# %% tags=["solution"]
model, fresh = jaxlab.create_model("alexnet", num_classes=5, weights="imagenet-conv")
params = {**variables["params"], "fc8": fresh["params"]["fc8"]}

# %%
print({name: leaf.shape for name, leaf in params["fc8"].items()})
answers["outputs_of_new_head"] = params["fc8"]["bias"].size

# %% [markdown]
# `create_model("alexnet", num_classes=5, weights=…)` and `fine_tune` do this by
# themselves: a head that does not fit the classes is replaced by a fresh one.

# %% [markdown]
# ## Freeze
#
# A frozen layer keeps its weights. In PyTorch you set `requires_grad = False` on
# parameters. Here a tree of `True` and `False` beside the params says what is trained.
#
# - `freeze="features"` freezes the convolutions. The hidden layers learn the new task.
# - `freeze="backbone"` freezes all but the head. Very little is trained, so that very
#   little can over-fit.
#
# **Your turn.** Make both trees with `jaxlab.trainable_tree`. Its patterns are regular
# expressions for paths such as `conv1/kernel`, each with `"frozen"` or `"trainable"`.

# %% tags=["task"]
features_frozen = ...  # TODO: only conv1 to conv5 are frozen
backbone_frozen = ...  # TODO: only fc8 is trained

# %% tags=["solution"]
features_frozen = jaxlab.trainable_tree(
    params, [("conv.*", "frozen"), ("fc.*", "trainable")]
)
backbone_frozen = jaxlab.trainable_tree(
    params, [("fc8/.*", "trainable"), (".*", "frozen")]
)


# %%
def count_trained(trainable):
    """Return the number of parameters that are trained."""
    sizes = jax.tree.map(
        lambda leaf, is_trained: leaf.size * is_trained, params, trainable
    )
    return int(sum(jax.tree.leaves(sizes)))


answers["trained_without_convolutions"] = count_trained(features_frozen)
answers["trained_head_only"] = count_trained(backbone_frozen)
print(jaxlab.summary(model, (SIZE, SIZE, 3), backbone_frozen))

# %% [markdown]
# ## Train with frozen convolutions: the digits 5 to 9
#
# `fine_tune` takes pictures as they usually lie on a disk, one folder for each class,
# as torchvision's `ImageFolder` does. So we write the digits into such folders: 0 to 4
# and 5 to 9 apart, because we want to find out what a network that has seen only one
# half can do with the other.


# %%
def write_pictures(folder, classes):
    """Write digits of these classes as FOLDER/SPLIT/CLASS/NUMBER.png."""
    for name, split in {"train": data.train, "test": data.test}.items():
        for i in np.flatnonzero(np.isin(split.labels, classes)):
            path = folder / name / str(split.labels[i]) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.images[i, :, :, 0]).save(path)
    return folder


low_digits = write_pictures(FOLDER / "digits-0-4", range(5))
high_digits = write_pictures(FOLDER / "digits-5-9", range(5, 10))

# %% [markdown]
# The convolutions are ImageNet's, and fc6, fc7 and fc8 are fresh. To freeze fresh
# layers is usually an oversight, because they know nothing. So jaxlab refuses it:

# %%
try:
    jaxlab.fine_tune(high_digits, freeze="backbone")
except jaxlab.JaxlabError as error:
    print(error)

# %% [markdown]
# We freeze the convolutions only. Their outputs for an image never change, so they are
# computed once, and all epochs train on the stored outputs. In PyTorch's usual loop
# they would be computed again in each epoch.

# %%
SETTINGS = {
    "image_size": SIZE,
    "epochs": EPOCHS,
    "checkpoint_every": 0,  # no checkpoints, from which a run could go on
    "overwrite": True,  # so that a cell can be run twice
}
first = jaxlab.fine_tune(
    high_digits, freeze="features", out=FOLDER / "five-to-nine", **SETTINGS
)
answers["accuracy_5_to_9"] = first.test_accuracy

# %%
jaxlab.plot_curves(first, "Digits 5 to 9, convolutions frozen")

# %% [markdown]
# At first the training curve is worse than the test curve. It is measured while the
# network still learns, and with dropout.
#
# ## Train the head alone: the digits 0 to 4
#
# This network has never seen a 0, 1, 2, 3 or 4. Its convolutions come from photographs,
# and its hidden layers from the digits 5 to 9. We freeze both. Can a new head, a single
# layer, learn the new digits? By guessing it would be right in one of five cases.
#
# **Your turn.** Fine-tune on `low_digits`, starting from the weights of the first run,
# the file `first.folder / "model.safetensors"`, with all but the head frozen, at a
# rate of `lr=1e-3`, ten times that of the first run: a head alone has few weights, and
# each moves the result little. Choose another `out`, such as `FOLDER / "head-alone"`,
# and pass `**SETTINGS`.

# %% tags=["task"]
head_alone = ...  # TODO: jaxlab.fine_tune(low_digits, weights=…, freeze=…, …)

# %% tags=["solution"]
head_alone = jaxlab.fine_tune(
    low_digits,
    weights=first.folder / "model.safetensors",
    freeze="backbone",
    lr=1e-3,
    out=FOLDER / "head-alone",
    **SETTINGS,
)

# %%
jaxlab.plot_curves(head_alone, "Digits 0 to 4, all but the head frozen")

# %% [markdown]
# Was it really the head alone? Compare the weights of both runs, layer by layer.

# %%
_, before = jaxlab.create_model(
    "alexnet", num_classes=5, weights=first.folder / "model.safetensors"
)
_, after = jaxlab.create_model(
    "alexnet", num_classes=5, weights=head_alone.folder / "model.safetensors"
)
changed = [
    layer
    for layer, leaves in after["params"].items()
    if not np.array_equal(leaves["kernel"], before["params"][layer]["kernel"])
]
answers["layers_changed"] = len(changed)
print("changed:", changed)

# %% [markdown]
# ## What did transfer? A control
#
# The head alone is right far more often than one in five. A plausible explanation is
# that the hidden layers have learned, from the digits 5 to 9, what strokes and loops
# are. But an explanation is worth little without a control: the same training, behind
# hidden layers that have learned nothing. Guess the result before you run it.
#
# Your `params` have ImageNet's convolutions, random hidden layers and a random head. We
# write them into a file, in torchvision's names, and train its head alone. For
# comparison we also train as before, with only the convolutions frozen, on the digits 0
# to 4.

# %%
random_hidden = FOLDER / "random-hidden.safetensors"
save_file(to_state_dict(jax.device_get({"params": params}), "alexnet"), random_hidden)
control = jaxlab.fine_tune(
    low_digits,
    weights=random_hidden,
    freeze="backbone",
    lr=1e-3,
    out=FOLDER / "control",
    log=False,
    **SETTINGS,
)
best = jaxlab.fine_tune(
    low_digits, freeze="features", out=FOLDER / "zero-to-four", log=False, **SETTINGS
)
answers["accuracy_0_to_4_head_alone"] = head_alone.test_accuracy
answers["accuracy_0_to_4_control"] = control.test_accuracy
answers["accuracy_0_to_4_convolutions_frozen"] = best.test_accuracy
print("test accuracy for the digits 0 to 4")
print(f"{head_alone.test_accuracy:.1%}  head alone, hidden layers trained on 5 to 9")
print(f"{control.test_accuracy:.1%}  head alone, hidden layers random")
print(f"{best.test_accuracy:.1%}  hidden layers and head trained")

# %% [markdown]
# Random hidden layers are not worse than those that were trained on other digits, but
# better. So the plausible explanation is wrong. What the new head builds on are the
# convolutions: they describe a digit so well that even random combinations of what they
# say tell the digits apart. The layers that were trained on 5 to 9 have probably kept
# what distinguishes these five, and let go of other things, which the digits 0 to 4
# would need. (Must the convolutions be ImageNet's? Make the same control for them, with
# `weights="none"` in `create_model`.)
#
# The best network trains its hidden layers, too. So freeze the convolutions first.
# Freeze hidden layers if you have very few pictures, or if these layers were trained on
# much more than the new task, as ImageNet's own were on 1,000 classes.

# %% [markdown]
# ## Look at the mistakes
#
# An accuracy says how often the network is wrong, but not why. Here are the sixteen
# test digits for whose true class it gave the lowest probability. "2, not 1" is a 1
# that it took for a 2.

# %%
is_low = data.test.labels < 5
images, labels = data.test.images[is_low], data.test.labels[is_low]
probabilities = best.classifier.probabilities(images)
predictions = probabilities.argmax(axis=1)
print((predictions != labels).sum(), "mistakes in", len(labels), "images")
hardest = np.argsort(probabilities[np.arange(len(labels)), labels])[:16]
jaxlab.plot_images(images[hardest], labels[hardest], predictions=predictions[hardest])

# %% [markdown]
# Its mistakes are a 1 with a foot, taken for a 2, and a 2 that looks like such a 1.
# Most people would hesitate, too.
#
# ## Look inside: filters and activations
#
# The kernels of conv1 are applied to the image itself, so they can be shown as small
# images: 64 filters of 11 by 11 pixels in colour. They were learned from photographs,
# and find edges in all directions, gratings and blobs of colour. Digits have edges,
# too.

# %%
model, trained = jaxlab.create_model(
    "alexnet", num_classes=5, weights=best.folder / "model.safetensors"
)
kernel = np.asarray(trained["params"]["conv1"]["kernel"])  # [11, 11, 3, 64]
low, high = kernel.min(axis=(0, 1, 2)), kernel.max(axis=(0, 1, 2))
tiles = ((kernel - low) / (high - low)).transpose(3, 0, 1, 2)
figure, panels = plt.subplots(8, 8, figsize=(5, 5))
for axes, tile in zip(panels.flat, tiles, strict=True):
    axes.imshow(tile)
    axes.set_axis_off()
figure.suptitle("The 64 filters of conv1", size=10)
figure.subplots_adjust(0, 0, 1, 0.94, 0.08, 0.08)
plt.show()

# %% [markdown]
# An activation is what a layer answers to one image. In PyTorch you register a forward
# hook. Flax returns the output of every layer if you ask for it:
# `capture_intermediates`. Each row shows the eight channels of a layer that answer most
# strongly.

# %%
digit = jaxlab.Preprocess(image_size=SIZE)(images[:1])
whole, kept = model.apply(
    trained,
    digit,
    train=False,
    capture_intermediates=True,
    mutable=["intermediates"],
)
figure, panels = plt.subplots(3, 9, figsize=(11, 4.2))
for row, layer in zip(panels, ("conv1", "conv3", "conv5"), strict=True):
    output = kept["intermediates"][layer]["__call__"][0][0]  # [h, w, channels]
    output = np.maximum(output, 0)  # what ReLU passes on
    strongest = np.argsort(-output.mean(axis=(0, 1)))[:8]
    row[0].imshow(images[0, :, :, 0], cmap="gray")
    row[0].set_title(f"{layer}, {len(output)}×{len(output)}", size=8)
    for axes, channel in zip(row[1:], strongest, strict=True):
        axes.imshow(output[:, :, channel], cmap="viridis")
        axes.set_title(f"channel {channel}", size=8)
    for axes in row:
        axes.set_axis_off()
figure.tight_layout()
plt.show()

# %% [markdown]
# conv1 still draws the digit: some channels show dark or bright areas, others edges of
# one direction. conv3 and conv5 say more coarsely *where* something is, and each
# channel says *what*.
#
# **Your turn.** `model.apply(trained, …, until="conv5")` ends behind conv5, with its
# ReLU and pools, and `after="conv5"` begins there. Cut the network in two: compute the
# `features` of `digit`, and from them the `logits`. Frozen outputs are stored in this
# way.

# %% tags=["task"]
features = ...  # TODO: the output of conv5
logits = ...  # TODO: the logits, from the features

# %% tags=["solution"]
features = model.apply(trained, digit, train=False, until="conv5")
logits = model.apply(trained, features, train=False, after="conv5")

# %%
answers["numbers_stored_for_an_image"] = features[0].size
print("stored for an image:", features[0].shape)
print("difference from the whole network:", float(abs(logits - whole).max()))

# %% [markdown]
# ## Draw a digit yourself
#
# A test accuracy holds for images like those of the test. Draw a digit as you would on
# paper, with a thick black pen, and ask the network. (Change the points, or pass
# `predict` the path of a picture from your own camera.)

# %%
paper = Image.new("L", (200, 200), color=255)
pen = ImageDraw.Draw(paper)
two = [(30, 42), (36, 28), (52, 22), (68, 28), (72, 44), (64, 60)]
two += [(46, 80), (28, 100), (76, 100)]
pen.line(two, fill=0, width=10, joint="curve")
drawn = np.asarray(paper)
print("drawn:", best.classifier.predict(drawn, top=3))

# %% [markdown]
# It is wrong. Nothing is wrong with the training: MNIST's digits are white on black,
# fill most of the image, and are centred. This one is black on white, small, and in a
# corner. The network has never seen such an image, and no one told it that colour and
# place do not matter. (It also cannot say "none of these": the probabilities of its
# five classes always add up to 1.)
#
# The remedy is to make the image like those of training. Inverting it is half of that.

# %%
inverted = 255 - drawn
print("inverted:", best.classifier.predict(inverted, top=3))

# %% [markdown]
# **Your turn.** Write `like_mnist`. MNIST was made so: the digit's bounding box is
# scaled to fit into 20 by 20 pixels, and is put into the middle of 28 by 28 black ones.
# (MNIST centres the mass of the digit; the middle of its box is close to that.)


# %% tags=["task"]
def like_mnist(drawn):
    """Return uint8[28, 28], white on black and centred, of black on white."""
    return ...  # TODO: invert, crop to the strokes, shrink to 20×20, paste into 28×28


# %% tags=["solution"]
def like_mnist(drawn):
    """Return uint8[28, 28], white on black and centred, of black on white."""
    rows, columns = np.nonzero(drawn < 128)
    top, left = rows.min(), columns.min()
    digit = Image.fromarray(255 - drawn[top : rows.max() + 1, left : columns.max() + 1])
    digit.thumbnail((20, 20))
    image = Image.new("L", (28, 28))
    image.paste(digit, ((28 - digit.width) // 2, (28 - digit.height) // 2))
    return np.asarray(image)


# %%
adapted = like_mnist(drawn)
attempts = {"as drawn": drawn, "inverted": inverted, "inverted and centred": adapted}
figure, panels = plt.subplots(1, 3, figsize=(8, 3.2))
for axes, (title, image) in zip(panels, attempts.items(), strict=True):
    answer, probability = best.classifier.predict(image, top=1)[0]
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    axes.set_title(f"{title}:\n{answer}, {100 * probability:.0f} %", size=10)
    axes.set(xticks=[], yticks=[])
figure.tight_layout()
plt.show()
for name, image in {"drawn": drawn, "remedied": adapted}.items():
    of_classes = dict(best.classifier.predict(image))
    answers[f"probability_of_2_{name}"] = round(of_classes["2"], 4)

# %% [markdown]
# The same network, with the same weights, is right now. So before you blame a network,
# look at what it was given, with the preprocessing undone, beside a few images of its
# training.
#
# ## Your answers

# %%
print(json.dumps(answers))
