"""AlexNet with few channels, for the tests and benchmarks of what surrounds it."""

import flax.linen as nn

from jaxlab.models.alexnet import AlexNet
from jaxlab.models.layers import Conv, linear


class NarrowAlexNet(AlexNet):
    """AlexNet with 8 to 16 channels and 32 hidden units."""

    def setup(self):
        """Create the named layers."""
        self.conv1 = Conv(3, 8, kernel_size=11, stride=4, padding=2)
        self.conv2 = Conv(8, 12, kernel_size=5, padding=2)
        self.conv3 = Conv(12, 16, kernel_size=3, padding=1)
        self.conv4 = Conv(16, 12, kernel_size=3, padding=1)
        self.conv5 = Conv(12, 12, kernel_size=3, padding=1)
        self.drop6 = nn.Dropout(self.dropout_rate)
        self.fc6 = linear(12 * 6 * 6, 32)
        self.drop7 = nn.Dropout(self.dropout_rate)
        self.fc7 = linear(32, 32)
        self.fc8 = linear(32, self.num_classes)
