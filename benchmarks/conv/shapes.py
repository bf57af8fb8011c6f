"""The convolutions that are measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A square convolution with padding of half its kernel."""

    name: str
    batch: int
    channels: int
    size: int
    outputs: int
    kernel: int
    stride: int = 1
    groups: int = 1

    @property
    def out_size(self) -> int:
        """Pixels in a row of the output."""
        return (self.size + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1

    @property
    def flops(self) -> int:
        """Operations of the forward pass."""
        pixels = self.batch * self.outputs * self.out_size**2
        return 2 * pixels * self.channels // self.groups * self.kernel**2

    @property
    def elements(self) -> int:
        """What the forward pass reads and writes at least."""
        weights = self.outputs * self.channels // self.groups * self.kernel**2
        read = self.batch * self.channels * self.size**2
        return read + weights + self.batch * self.outputs * self.out_size**2


# Geometric means are those of the first 16.
SHAPES = (
    Shape("stem7x7", 128, 3, 224, 64, 7, 2),
    Shape("r50_1x1_64_256", 128, 64, 56, 256, 1),
    Shape("r50_1x1_256_64", 128, 256, 56, 64, 1),
    Shape("r50_3x3_64", 128, 64, 56, 64, 3),
    Shape("r50_3x3_128s2", 128, 128, 56, 128, 3, 2),
    Shape("r50_3x3_256", 128, 256, 14, 256, 3),
    Shape("r50_1x1_2048_512", 128, 2048, 7, 512, 1),
    Shape("vgg_3x3_64_224", 64, 64, 224, 64, 3),
    Shape("vgg_3x3_512_28", 64, 512, 28, 512, 3),
    Shape("unet_3x3_64_256", 16, 64, 256, 64, 3),
    Shape("seed_64_128_3x3_56", 128, 64, 56, 128, 3),
    Shape("dw3x3_144_56", 128, 144, 56, 144, 3, 1, 144),
    Shape("dw3x3_384_14", 128, 384, 14, 384, 3, 1, 384),
    Shape("dw7x7_96_56", 64, 96, 56, 96, 7, 1, 96),
    Shape("dw5x5s2_240_28", 128, 240, 28, 240, 5, 2, 240),
    Shape("grp32_3x3_256_56", 64, 256, 56, 256, 3, 1, 32),
    Shape("stem3x3_32", 128, 3, 224, 32, 3, 2),
    Shape("dw3x3s2_96_112", 64, 96, 112, 96, 3, 2, 96),
    Shape("dw5x5_672_14", 128, 672, 14, 672, 5, 1, 672),
    Shape("dw7x7_384_14", 64, 384, 14, 384, 7, 1, 384),
    Shape("grp32_3x3_128_56", 64, 128, 56, 128, 3, 1, 32),
    Shape("grp32_3x3_256s2_56", 64, 256, 56, 256, 3, 2, 32),
    Shape("grp32_3x3_512_14", 64, 512, 14, 512, 3, 1, 32),
    Shape("grp32_3x3_1024_7", 64, 1024, 7, 1024, 3, 1, 32),
)
