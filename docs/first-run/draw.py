"""Draw the first page's pictures of a run: `python docs/first-run/draw.py RUN`."""

import shutil
import sys
from pathlib import Path

import numpy as np

import jaxlab

run, here = Path(sys.argv[1]), Path(__file__).parent
classifier, test = jaxlab.Classifier.load(run), jaxlab.load_data("mnist5k").test
probabilities = classifier.probabilities(test.images)
predictions = probabilities.argmax(-1)
wrong = np.flatnonzero(predictions != test.labels)
wrong = wrong[np.argsort(-probabilities.max(-1)[wrong], kind="stable")][:8]
figure = jaxlab.plot_images(
    test.images[wrong], test.labels[wrong], classifier.class_names, predictions[wrong]
)
figure.savefig(here / "mistakes.png")
shutil.copy(run / "curves.png", here / "curves.png")
