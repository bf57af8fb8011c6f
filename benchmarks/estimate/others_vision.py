"""Steps of others: networks of timm, torchvision and transformers for images, and plain ones.

Sizes, types, optimizers and the order of operations belong to the recorded figures. Each entry
builds a step on ``"cuda"``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.estimate.training import Step, functions, training

_BF16, _FP16 = torch.bfloat16, torch.float16
_NHWC = torch.channels_last
_Optimize = Callable[[nn.Module], torch.optim.Optimizer]


def _classifier(
    name: str,
    batch: int,
    *,
    autocast: torch.dtype,
    scaled: bool = False,
    channels_last: bool = False,
    optimize: _Optimize = lambda model: torch.optim.AdamW(model.parameters(), 1e-3),
) -> Step:
    """Trains a classifier of timm on 224 x 224 images of 100 classes."""
    import timm

    model = timm.create_model(name, num_classes=100).to("cuda")
    images = torch.randn(batch, 3, 224, 224, device="cuda")
    if channels_last:
        model = model.to(memory_format=_NHWC)
        images = images.to(memory_format=_NHWC)
    labels = torch.randint(0, 100, (batch,), device="cuda")

    def loss_of() -> Tensor:
        return functional.cross_entropy(model(images), labels)

    return training(loss_of, optimize(model), autocast=autocast, scaled=scaled)


def regnet() -> Step:
    """A RegNet of timm, channels-last, bf16 autocast, SGD with Nesterov momentum."""

    def optimize(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-4
        )

    return _classifier("regnety_016", 48, autocast=_BF16, channels_last=True, optimize=optimize)


def swin() -> Step:
    """A Swin transformer of timm, bf16 autocast, AdamW."""
    return _classifier("swin_tiny_patch4_window7_224", 32, autocast=_BF16)


def mobilenet_fp16() -> Step:
    """A MobileNet of timm, channels-last, fp16 with a scaler, RMSprop with momentum."""

    def optimize(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(model.parameters(), 1e-3, momentum=0.9)

    return _classifier(
        "mobilenetv3_large_100",
        64,
        autocast=_FP16,
        scaled=True,
        channels_last=True,
        optimize=optimize,
    )


def coatnet() -> Step:
    """A CoAtNet of timm, fp16 with a scaler, AdamW."""
    return _classifier("coatnet_0_rw_224", 16, autocast=_FP16, scaled=True)


def distill() -> Step:
    """A MobileViT that learns from a ResNet-50, both of timm, bf16 autocast."""
    import timm

    teacher = timm.create_model("resnet50", num_classes=100).to("cuda").eval()
    student = timm.create_model("mobilevit_xs", num_classes=100).to("cuda")
    images = torch.randn(32, 3, 192, 192, device="cuda")
    labels = torch.randint(0, 100, (32,), device="cuda")

    def loss_of() -> Tensor:
        with torch.no_grad():
            wanted = teacher(images)
        said = student(images)
        return (
            functional.cross_entropy(said, labels)
            + functional.kl_div(
                functional.log_softmax(said / 4, -1),
                functional.softmax(wanted / 4, -1),
                reduction="batchmean",
            )
            * 16
        )

    optimizer = torch.optim.AdamW(student.parameters(), 1e-3)
    return training(loss_of, optimizer, autocast=_BF16)


def deeplab() -> Step:
    """Segmentation by torchvision's DeepLab with its second head, bf16 autocast, SGD."""
    from torchvision.models.segmentation import deeplabv3_resnet50

    model = deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=19, aux_loss=True
    ).to("cuda")
    images = torch.randn(4, 3, 320, 320, device="cuda")
    labels = torch.randint(0, 19, (4, 320, 320), device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def loss_of() -> Tensor:
        out = model(images)
        return functional.cross_entropy(
            out["out"], labels, ignore_index=255
        ) + 0.4 * functional.cross_entropy(out["aux"], labels, ignore_index=255)

    return training(loss_of, optimizer, autocast=_BF16)


def video() -> Step:
    """Torchvision's ResNet of three dimensions on clips of eight frames, fp32, Adam."""
    from torchvision.models.video import r3d_18

    model = r3d_18(weights=None, num_classes=50).to("cuda")
    clips = torch.randn(4, 3, 8, 112, 112, device="cuda")
    labels = torch.randint(0, 50, (4,), device="cuda")

    def loss_of() -> Tensor:
        return functional.cross_entropy(model(clips), labels)

    return training(loss_of, torch.optim.Adam(model.parameters(), 1e-3))


def triplet() -> Step:
    """An EfficientNet of torchvision, triplet loss, averaged weights, AdamW without foreach."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
    from torchvision.models import efficientnet_v2_s

    model = efficientnet_v2_s(weights=None, num_classes=128).to("cuda")
    images = torch.randn(48, 3, 160, 160, device="cuda")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))

    def loss_of() -> Tensor:
        places = functional.normalize(model(images), dim=-1)
        return functional.triplet_margin_loss(places[:16], places[16:32], places[32:])

    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, foreach=False)
    train = training(loss_of, optimizer, autocast=_BF16)

    def step() -> None:
        train()
        average.update_parameters(model)

    return step


def simclr() -> Step:
    """Contrastive learning of a ResNet-18 of torchvision, channels-last, fp16 with a scaler."""
    from torchvision.models import resnet18

    model = resnet18(weights=None, num_classes=128).to("cuda").to(memory_format=_NHWC)
    images = torch.randn(128, 3, 96, 96, device="cuda").to(memory_format=_NHWC)

    def loss_of() -> Tensor:
        places = functional.normalize(model(images).float(), dim=1)
        near = places @ places.T
        itself = torch.eye(128, dtype=torch.bool, device="cuda")
        pairs = torch.cat([torch.arange(64), torch.arange(64)]).to("cuda")
        same = (pairs[None] == pairs[:, None])[~itself].view(128, -1)
        near = near[~itself].view(128, -1)
        logits = (
            torch.cat([near[same.bool()].view(128, -1), near[~same.bool()].view(128, -1)], 1) / 0.07
        )
        return functional.cross_entropy(logits, torch.zeros(128, dtype=torch.long, device="cuda"))

    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return training(loss_of, optimizer, autocast=_FP16, scaled=True)


def segformer() -> Step:
    """Segmentation by the SegFormer of transformers, fp16 with a scaler, AdamW."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=20)).to("cuda")
    images = torch.randn(8, 3, 256, 256, device="cuda")
    labels = torch.randint(0, 20, (8, 256, 256), device="cuda")

    def loss_of() -> Tensor:
        return model(pixel_values=images, labels=labels).loss

    optimizer = torch.optim.AdamW(model.parameters(), 6e-5)
    return training(loss_of, optimizer, autocast=_FP16, scaled=True)


def vitmae() -> Step:
    """A masked autoencoder of transformers, bf16 autocast, AdamW."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=2048,
        decoder_num_hidden_layers=2,
    )
    model = ViTMAEForPreTraining(config).to("cuda")
    images = torch.randn(48, 3, 224, 224, device="cuda")

    def loss_of() -> Tensor:
        return model(pixel_values=images).loss

    return training(loss_of, torch.optim.AdamW(model.parameters(), 1e-4), autocast=_BF16)


class _Sharpening(nn.Module):
    """A residual block of super-resolution: two convolutions, a tenth of which is added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.PReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.body(x)


def superres() -> Step:
    """Super-resolution of 96 x 96 images, a shuffle of pixels at the end, fp16 with a scaler."""
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        *(_Sharpening(64) for _ in range(8)),
        nn.Conv2d(64, 256, 3, padding=1),
        nn.PixelShuffle(2),
        nn.Conv2d(64, 3, 3, padding=1),
    ).to("cuda")
    small = torch.rand(16, 3, 96, 96, device="cuda")
    large = torch.rand(16, 3, 192, 192, device="cuda")

    def loss_of() -> Tensor:
        return functional.l1_loss(model(small), large)

    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    return training(loss_of, optimizer, autocast=_FP16, scaled=True)


def stn() -> Step:
    """A spatial transformer: images are turned as a network says, then classified, fp32."""
    turn = nn.Sequential(
        nn.Conv2d(3, 16, 7), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(16, 32, 5), nn.AdaptiveAvgPool2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 6),
    ).to("cuda")  # fmt: skip
    name = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.InstanceNorm2d(32, affine=True), nn.SiLU(),
        nn.Dropout2d(0.1),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GroupNorm(8, 64), nn.Mish(),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ).to("cuda")  # fmt: skip
    images = torch.randn(64, 3, 128, 128, device="cuda")
    labels = torch.randint(0, 10, (64,), device="cuda")

    def loss_of() -> Tensor:
        grid = functional.affine_grid(
            turn(images).view(-1, 2, 3), list(images.shape), align_corners=False
        )
        return functional.cross_entropy(
            name(functional.grid_sample(images, grid, align_corners=False)), labels
        )

    parameters = nn.ModuleList([turn, name]).parameters()
    return training(loss_of, torch.optim.Adagrad(parameters, 1e-2))


def _conv3d(first: int, last: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(first, last, 3, padding=1),
        nn.InstanceNorm3d(last, affine=True),
        nn.LeakyReLU(0.01, inplace=True),
    )


def unet3d() -> Step:
    """A U-Net of three dimensions, cross entropy and Dice loss, fp16 with a scaler, clipped."""
    down = [_conv3d(1, 16), _conv3d(16, 32), _conv3d(32, 64)]
    up = [nn.ConvTranspose3d(64, 32, 2, 2), nn.ConvTranspose3d(32, 16, 2, 2)]
    joined = [_conv3d(64, 32), _conv3d(32, 16)]
    head = nn.Conv3d(16, 3, 1)
    model = nn.ModuleList([*down, *up, *joined, head]).to("cuda")
    scans = torch.randn(2, 1, 64, 64, 64, device="cuda")
    labels = torch.randint(0, 3, (2, 64, 64, 64), device="cuda")

    def loss_of() -> Tensor:
        fine = down[0](scans)
        middle = down[1](functional.max_pool3d(fine, 2))
        coarse = down[2](functional.max_pool3d(middle, 2))
        middle = joined[0](torch.cat([up[0](coarse), middle], 1))
        fine = joined[1](torch.cat([up[1](middle), fine], 1))
        logits = head(fine)
        shares = logits.softmax(1)
        wanted = functional.one_hot(labels, 3).permute(0, 4, 1, 2, 3).float()
        dice = 1 - (2 * (shares * wanted).sum((2, 3, 4)) + 1) / (
            (shares + wanted).sum((2, 3, 4)) + 1
        )
        return functional.cross_entropy(logits, labels) + dice.mean()

    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.99, nesterov=True)
    return training(loss_of, optimizer, autocast=_FP16, scaled=True, clip=12.0)


def vae_vq() -> Step:
    """A variational autoencoder whose codes are the nearest of a table, fp32, RAdam."""
    encoder = nn.Sequential(nn.Conv2d(3, 128, 4, 2, 1), nn.ReLU(), nn.Conv2d(128, 64, 4, 2, 1)).to(
        "cuda"
    )
    decoder = nn.Sequential(
        nn.ConvTranspose2d(64, 128, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(128, 3, 4, 2, 1)
    ).to("cuda")
    codes = nn.Embedding(512, 64).to("cuda")
    images = torch.rand(32, 3, 128, 128, device="cuda")

    def loss_of() -> Tensor:
        z = encoder(images)
        flat = z.permute(0, 2, 3, 1).reshape(-1, 64)
        nearest = (
            flat.pow(2).sum(1, keepdim=True)
            - 2 * flat @ codes.weight.t()
            + codes.weight.pow(2).sum(1)
        ).argmin(1)
        code = codes(nearest).view(32, 32, 32, 64).permute(0, 3, 1, 2)
        return (
            functional.mse_loss(decoder(z + (code - z).detach()), images)
            + functional.mse_loss(code, z.detach())
            + 0.25 * functional.mse_loss(z, code.detach())
        )

    parameters = nn.ModuleList([encoder, decoder, codes]).parameters()
    return training(loss_of, torch.optim.RAdam(parameters, 1e-3))


def _enlarging(first: int, last: int) -> list[nn.Module]:
    return [
        nn.Upsample(scale_factor=2),
        nn.Conv2d(first, last, 3, padding=1),
        nn.BatchNorm2d(last),
        nn.ReLU(),
    ]


def _critic() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(64, 128, 4, 2, 1),
        nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(8192, 1),
    )  # fmt: skip


def wgangp() -> Step:
    """A Wasserstein generator and critic with a penalty on the gradient's norm, fp32."""
    makes = nn.Sequential(
        nn.Linear(128, 4 * 4 * 256),
        nn.Unflatten(1, (256, 4, 4)),
        *(_enlarging(256, 128) + _enlarging(128, 64)),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Conv2d(64, 3, 3, padding=1),
        nn.Tanh(),
    ).to("cuda")
    judges = _critic().to("cuda")
    of_makes = torch.optim.Adam(makes.parameters(), 1e-4, (0.0, 0.9))
    of_judges = torch.optim.Adam(judges.parameters(), 1e-4, (0.0, 0.9))
    images = torch.rand(64, 3, 32, 32, device="cuda")

    def step() -> None:
        made = makes(torch.randn(64, 128, device="cuda")).detach()
        share = torch.rand(64, 1, 1, 1, device="cuda")
        mixed = (share * images + (1 - share) * made).requires_grad_()
        (slope,) = torch.autograd.grad(judges(mixed).sum(), mixed, create_graph=True)
        loss = (
            judges(made).mean()
            - judges(images).mean()
            + 10 * (slope.flatten(1).norm(2, dim=1) - 1).square().mean()
        )
        of_judges.zero_grad()
        loss.backward()
        of_judges.step()
        loss = -judges(makes(torch.randn(64, 128, device="cuda"))).mean()
        of_makes.zero_grad()
        loss.backward()
        of_makes.step()

    return step


VISION = functions(
    *(regnet, swin, mobilenet_fp16, coatnet, distill, deeplab, video, triplet, simclr),
    *(segformer, vitmae, superres, stn, unet3d, vae_vq, wgangp),
)
