"""Growth on the device against float64 on a CPU, and scores on a device whose memory is full."""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from jobs.benchmark.device.rig import CIFAR, CPU, SMALL, Result, Rig, launch, low_allowed, short, tf32
from volgrowth.audit.scoring.derivatives import tf32_allowed
from volgrowth.audit.scoring.scorer import Scorer
from volgrowth.config import AuditConfig
from volgrowth.models.pipelines.latents import Latents, images_at_once
from volgrowth.sources import Row, encode_png

# what is left free of a device that is filled
LEFT_BYTES = 4 << 30


def check_growth(rig: Rig) -> Iterator[Result]:
    """Compare the growth of every preset, in float32 with TF32 off and on and in bfloat16, with float64 on a CPU."""
    count = 4 if rig.quick else 16
    images = rig.images(SMALL, count, CPU)
    for preset, measure in rig.presets.items():
        exact = launch(rig.denoiser(SMALL, torch.float64, CPU), images.double(), measure).fetch().columns["growth"]
        for dtype in (torch.float32, torch.bfloat16):
            for allowed in (False, True) if dtype is torch.float32 and rig.gpu else (False,):
                if dtype is torch.bfloat16 and not low_allowed(measure):
                    continue
                with tf32(allowed):
                    found = launch(rig.denoiser(SMALL, dtype), images.to(rig.device), measure).fetch()
                    switches = tf32_allowed()
                growth = found.columns["growth"]
                yield {
                    "preset": preset,
                    "dtype": short(dtype),
                    "tf32": [kind for kind, on in switches.items() if on],
                    "worst": float(np.abs(growth - exact).max()),
                    "spread": float(np.ptp(exact)),
                    "deviation of spread": float(np.std(growth - exact) / np.std(exact)),
                    "spearman": float(spearmanr(growth, exact).statistic),
                    "finite": bool(np.isfinite(growth).all()),
                }


def check_full_device(rig: Rig) -> Iterator[Result]:
    """Score images on a device that is nearly full, and encode and decode large ones there."""
    denoiser, batch = rig.denoiser(CIFAR, torch.bfloat16), 8 if rig.quick else 1024
    files = [encode_png(each) for each in ((rig.images(CIFAR, 64, CPU) + 1) * 127.5).round().to(torch.uint8).numpy()]
    rows = [Row(i, str(i), "", files[i % len(files)]) for i in range(2 * batch)]
    unused = dict.fromkeys(("model", "data", "output"), "unused")
    measure = {"preset": "volume", "num_levels": 2, "num_probes": 1}  # backward passes take the most memory
    config = AuditConfig.build(**unused, dtype="bfloat16", batch_size=batch, measure=measure)
    whole = Scorer(denoiser, config).score(rows)["growth"].to_numpy()
    taken = fill(rig)
    table = Scorer(denoiser, config).score(rows)
    yield {
        "asked": batch,
        "used": sorted(set(table["batch"].to_pylist())),
        "failed": table["growth"].null_count,
        "worst": float(np.abs(table["growth"].to_numpy() - whole).max()),
        "spread": float(np.ptp(whole)),
    }
    if rig.gpu:
        yield from _autoencoder(rig)
    del taken


def _autoencoder(rig: Rig) -> Iterator[Result]:
    """Encode and decode images of 512 x 512 by Stable Diffusion's autoencoder, with random weights."""
    from diffusers import AutoencoderKL

    blocks = 4
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=2,
        latent_channels=4,
    )
    shape = (3, 512, 512)
    asked = images_at_once(shape, rig.device)
    codec = Latents(vae.eval().requires_grad_(False).to(rig.device), shape, asked)
    images = torch.rand(32, *shape, device=rig.device) * 2 - 1
    shown = codec.decode(codec.encode(images))
    yield {
        "autoencoder": "512 x 512, float32",
        "asked": asked,
        "encoded by": codec.encoded.size,
        "decoded by": codec.decoded.size,
        "finite": bool(shown.isfinite().all()),
    }


def fill(rig: Rig) -> Tensor | None:
    """Take the memory of a GPU but for `LEFT_BYTES`, as long as the result is kept."""
    if not rig.gpu:
        return None
    rig.free()
    free = torch.cuda.mem_get_info(rig.device)[0]
    return torch.empty(max(0, free - LEFT_BYTES), dtype=torch.uint8, device=rig.device)
