"""The demo: real digits, a model that memorizes some of them, an audit that says which, samples that prove it.

Scikit-learn's 8x8 digits, twenty of them planted in many copies, and plain images (flat, gradient, faint), which every
model finds easy and which therefore look memorized to the raw score. Other digits and plain images are held out.
"""

import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits

from volgrowth.analysis.detection import auroc, tpr_at_fpr
from volgrowth.audit.result import SUMMARY_FILE, Audit
from volgrowth.config import AuditConfig
from volgrowth.models import load_model
from volgrowth.pipeline import run_audit, write_report
from volgrowth.verification import draw_samples, find_reproduced

TRAINED = 900
PLAIN = 150
PLANTED = ((10, 100), (10, 50))
STEPS = 2000
BATCH = 64
SAMPLES = 2000


@dataclass(frozen=True)
class DemoData:
    """Images (n, 8, 8) uint8 and their names, for training (with copies) and held out."""

    train: np.ndarray
    train_names: list[str]
    holdout: np.ndarray
    holdout_names: list[str]


def run_demo(output: Path) -> Audit:
    """Everything the demo does, in `output`; prints what it finds."""
    output.mkdir(parents=True, exist_ok=True)
    data = demo_data(seed=1)
    write_parquet(output / "train.parquet", data.train, data.train_names)
    write_parquet(output / "holdout.parquet", data.holdout, data.holdout_names)
    if (output / "model" / "model_index.json").exists():
        _say(f"taking the model of an earlier run; delete {output} to begin anew")
    else:
        planted = sum(images for images, _ in PLANTED)
        _say(f"training a small diffusion model on {len(data.train)} images, {planted} of them in many copies")
        train_model(data.train, output / "model", seed=1)
    config = AuditConfig.build(
        model=str(output / "model"),
        data=str(output / "train.parquet"),
        holdout=str(output / "holdout.parquet"),
        output=str(output / "audit"),
        id_column="name",
        shard_size=256,
    )
    _say("auditing")
    audit = run_audit(config)
    _say(f"drawing {SAMPLES} samples to see what the model really reproduces")
    truth = measure_truth(audit, output / "model", data)
    audit.store.write_json(SUMMARY_FILE, {**audit.summary, "truth": truth})
    audit = Audit(audit.store, audit.manifest)
    write_report(audit)
    _say(
        f"the model reproduces {truth['reproduced_images']} images; how well growth finds them:\n"
        f"              AUROC   TPR at 1% FPR\n"
        f"  raw         {truth['raw']['auroc']:.3f}   {truth['raw']['tpr_at_1_fpr']:.2f}\n"
        f"  calibrated  {truth['calibrated']['auroc']:.3f}   {truth['calibrated']['tpr_at_1_fpr']:.2f}\n"
        f"report: {audit.store.path('report.html')}"
    )
    return audit


def demo_data(seed: int) -> DemoData:
    """Digits and plain images, dealt to training and held out; the first training digits get copies."""
    random = np.random.default_rng(seed)
    digits = digit_images()
    order = random.permutation(len(digits))
    trained, held = order[:TRAINED], order[TRAINED:]
    plain = plain_images(digits[held], 2 * PLAIN, random)
    counts = np.ones(TRAINED, int)
    counts[: sum(n for n, _ in PLANTED)] = np.repeat([c for _, c in PLANTED], [n for n, _ in PLANTED])
    names = [f"digit-{row:04d}-{copy}" for row, count in zip(trained, counts, strict=True) for copy in range(count)]
    train = np.concatenate([np.repeat(digits[trained], counts, 0), plain[:PLAIN]])
    train_names = names + [f"plain-{index:04d}" for index in range(PLAIN)]
    holdout = np.concatenate([digits[held], plain[PLAIN:]])
    holdout_names = [f"digit-{row:04d}" for row in held] + [f"plain-{index + PLAIN:04d}" for index in range(PLAIN)]
    # two flat images can be of one grey level
    strangers = [index for index, image in enumerate(holdout) if not (train == image).all((1, 2)).any()]
    shuffle = random.permutation(len(train))
    return DemoData(
        train=train[shuffle],
        train_names=[train_names[index] for index in shuffle],
        holdout=holdout[strangers],
        holdout_names=[holdout_names[index] for index in strangers],
    )


def digit_images() -> np.ndarray:
    """Scikit-learn's digits, (1797, 8, 8) uint8."""
    return np.round(load_digits().images * (255 / 16)).astype(np.uint8)


def plain_images(digits: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Flat images, gradients and faint digits in turn, (count, 8, 8) uint8."""
    ramp = np.linspace(-1, 1, 8)
    images = []
    for index in range(count):
        level = random.uniform(20, 235)
        image = np.full((8, 8), level)
        if index % 3 == 1:
            angle = random.uniform(0, 2 * np.pi)
            image += random.uniform(10, 60) * (np.cos(angle) * ramp[:, None] + np.sin(angle) * ramp)
        elif index % 3 == 2:
            image += random.uniform(0.05, 0.15) * digits[random.integers(len(digits))]
        images.append(image)
    return np.clip(np.round(images), 0, 255).astype(np.uint8)


def write_parquet(path: Path, images: np.ndarray, names: list[str]) -> None:
    """A Hugging Face style Parquet file: column `image` with PNG bytes, column `name`."""
    rows = [
        {"image": {"bytes": png(image), "path": f"{name}.png"}, "name": name}
        for image, name in zip(images, names, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=256)


def png(image: np.ndarray) -> bytes:
    """An (H, W) uint8 image as PNG."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def train_model(images: np.ndarray, folder: Path, seed: int, steps: int = STEPS) -> None:
    """Train a small UNet2DModel on images (n, 8, 8) by the DDPM loss, and save it as a pipeline folder."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(seed)
    network = UNet2DModel(
        sample_size=images.shape[1],
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    scheduler = DDPMScheduler()
    data = to_tensor(images)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.05)
    for _ in track(range(steps), "training", console=Console(stderr=True), disable=not sys.stderr.isatty()):
        clean = data[torch.randint(len(data), (BATCH,))]
        noise, time = torch.randn_like(clean), torch.randint(1000, (BATCH,))
        predicted = network(scheduler.add_noise(clean, noise, time), time).sample
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(predicted, noise).backward()
        optimizer.step()
        decay.step()
    DDPMPipeline(network, scheduler).save_pretrained(folder)


def measure_truth(audit: Audit, model: Path, data: DemoData, samples: int = SAMPLES) -> dict[str, Any]:
    """What samples reproduce, and how well raw and calibrated growth find it, over distinct images."""
    findings = audit.findings
    first = np.unique(findings.column("cluster").to_numpy())
    drawn = draw_samples(load_model(str(model)), samples, seed=0)
    found = find_reproduced(drawn, to_tensor(data.train[first]), to_tensor(np.unique(data.holdout, axis=0)))
    reproduced = found.images
    truth: dict[str, Any] = {"samples": samples, "reproduced_images": int(reproduced.sum()), "rule": found.rule}
    truth["rows"] = np.flatnonzero(np.isin(findings.column("cluster").to_numpy(), first[reproduced])).tolist()
    for name, column in (("raw", "growth"), ("calibrated", "excess_growth")):
        score = findings.column(column).to_numpy()[first]
        truth[name] = {"auroc": auroc(score, reproduced), "tpr_at_1_fpr": tpr_at_fpr(score, reproduced)}
    return truth


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """(n, 1, 8, 8) in [-1, 1] from (n, 8, 8) uint8."""
    return torch.from_numpy(images[:, None] / 127.5 - 1).float()


def _say(line: str) -> None:
    print(line, flush=True)
