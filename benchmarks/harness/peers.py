"""Run the default job as PyTorch's users write it, for comparison in the benchmarks.

    python -m benchmarks.harness.peers

It consists of torchvision's AlexNet with ImageNet's convolutions frozen, a DataLoader
with transforms, Adam with weight decay, and StepLR. It uses all threads. Memory layout,
`torch.compile`, the fused Adam and the number of loader processes are flags, so that
the benchmarks can choose the fastest.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from jaxlab.data.digits import mnist5k
from jaxlab.verify import import_torch

torch, torchvision = import_torch()
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH, EVAL_BATCH = 64, 100


class Digits(torch.utils.data.Dataset):
    """A dataset like torchvision's MNIST: a transformed image and its label."""

    def __init__(self, split: Any):
        """Store the split's images, uint8[n, 28, 28], and its labels."""
        t = torchvision.transforms
        self.images = torch.from_numpy(split.images[..., 0])
        self.labels = torch.from_numpy(split.labels).long()
        self.transform = t.Compose(
            [
                t.ToPILImage(),
                t.Grayscale(3),
                t.Resize((224, 224)),
                t.ToTensor(),
                t.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        """Return the number of digits."""
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        """Return float32[3, 224, 224] and the label."""
        return self.transform(self.images[i]), self.labels[i]


class Lab:
    """The network, its data and its optimizer; `epoch` trains once and tests."""

    def __init__(
        self,
        *,
        network: str = "alexnet",
        freeze: str = "features",
        channels_last: bool = False,
        compiled: bool = False,
        fused: bool = False,
        workers: int = 0,
        train_size: int | None = None,
        test_size: int | None = None,
    ):
        """Build everything that the first epoch needs."""
        torch.manual_seed(0)
        data = mnist5k().first(train_size, test_size)
        self.loaders = {
            name: torch.utils.data.DataLoader(
                Digits(split),
                batch_size=BATCH if name == "train" else EVAL_BATCH,
                shuffle=name == "train",
                num_workers=workers,
                persistent_workers=workers > 0,
            )
            for name, split in data.splits.items()
        }
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        if network == "alexnet":
            self.plain = alexnet(freeze)
        else:  # random weights take as long
            self.plain = getattr(torchvision.models, network)(num_classes=10)
        self.frozen = []
        if network != "alexnet" and freeze == "features":
            *self.frozen, _ = self.plain.children()
            for module in self.frozen:
                module.requires_grad_(False)
        self.plain.to(memory_format=self.layout)
        self.model = torch.compile(self.plain) if compiled else self.plain
        trainable = [p for p in self.plain.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(
            trainable, lr=1e-4, weight_decay=5e-4, fused=fused or None
        )
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 3, 0.1)

    def step(self, images: Any, labels: Any) -> Any:
        """Take one training step; return the loss."""
        images = images.to(memory_format=self.layout)
        self.optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        return loss

    def epoch(self) -> float:
        """Train on every image once; return the accuracy on the test images."""
        self.model.train()
        for module in self.frozen:
            module.eval()
        total = 0.0
        for images, labels in self.loaders["train"]:
            total += self.step(images, labels).item() * len(labels)
        self.scheduler.step()
        self.model.eval()
        correct = 0
        with torch.no_grad():
            for images, labels in self.loaders["test"]:
                logits = self.model(images.to(memory_format=self.layout))
                correct += (logits.argmax(1) == labels).sum().item()
        return correct / len(self.loaders["test"].dataset)


def alexnet(freeze: str) -> Any:
    """Return torchvision's AlexNet for ten classes, with ImageNet's convolutions."""
    from pretrained.embedded import imagenet_conv

    model = torchvision.models.alexnet(num_classes=10)
    convolutions = [m for m in model.features if isinstance(m, torch.nn.Conv2d)]
    layers = imagenet_conv()
    with torch.no_grad():
        for name, layer in zip(sorted(layers), convolutions, strict=True):
            kernel = layers[name]["kernel"].transpose(3, 2, 0, 1).copy()
            layer.weight.copy_(torch.from_numpy(kernel))
            layer.bias.copy_(torch.from_numpy(layers[name]["bias"].copy()))
    trained = {"features": "classifier", "backbone": "classifier.6", "none": ""}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained[freeze]))
    return model


def main() -> None:
    """Run the job and save the network."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--freeze", default="features")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--fused", action="store_true", help="use the fused Adam")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--train-size", type=int)
    parser.add_argument("--test-size", type=int)
    parser.add_argument("--first-step", action="store_true", help="stop after one step")
    options = vars(parser.parse_args())
    epochs, first_step = options.pop("epochs"), options.pop("first_step")
    lab = Lab(**options)
    if first_step:
        lab.model.train()
        lab.step(*next(iter(lab.loaders["train"]))).item()
        return print("first step")
    for epoch in range(epochs):
        accuracy = lab.epoch()
        print(f"epoch {epoch + 1}: test accuracy {accuracy:.4f}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(lab.plain.state_dict(), Path(folder) / "model.pth")
    print(f"test_accuracy={accuracy:.4f}")


if __name__ == "__main__":
    sys.exit(main())
