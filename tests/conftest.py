"""Every test runs with the types and shapes of the public numerics checked on each call."""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from jaxtyping import install_import_hook
from threadpoolctl import threadpool_limits
from xdist.scheduler import LoadScopeScheduling

from tests.support import s3

# Networks so small gain nothing from threads, which spin while they wait; processes that the tests start inherit this.
for library in ("OMP", "MKL", "OPENBLAS"):
    os.environ[f"{library}_NUM_THREADS"] = "1"
threadpool_limits(1)  # for libraries that are loaded already
# `nohup` and jobs in the background of a shell ignore these, and the programs that the tests start would too
for number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGHUP else signal.default_int_handler)
# no test asserts a wall-clock time
hypothesis.settings.register_profile("volgrowth", deadline=None)
hypothesis.settings.load_profile("volgrowth")
install_import_hook(["volgrowth.numerics", "volgrowth.theory"], "beartype.beartype")

# Files whose tests need the demo's output, which takes minutes to make. One makes it first of all. The others come
# after the long tests of the engine, so that with several processes (`-n`) the one that does not make it has other
# tests meanwhile, and short ones are left for the end, where the processes wait for one another.
MAKES_THE_DEMO = "tests/commands/test_demo.py"
USE_THE_DEMO = (
    "tests/jobs/reproduce_paper/test_retraining.py",
    "tests/commands/test_verify.py",
    "tests/test_readme.py",
)
MEANWHILE = ("tests/analysis/", "tests/audit/")
# files whose tests calibrate as users do
ALL_TREES = (MAKES_THE_DEMO, *USE_THE_DEMO, "tests/analysis/", "tests/jobs/", "tests/commands/test_prompts.py")


def _turn(item: pytest.Item) -> int:
    file = item.nodeid.partition("::")[0]
    if file == MAKES_THE_DEMO:
        return 0
    if file in USE_THE_DEMO:
        return 2 + USE_THE_DEMO.index(file)
    return 1 if file.startswith(MEANWHILE) else 2 + len(USE_THE_DEMO)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what makes the demo first, and what else uses it in the middle."""
    items.sort(key=_turn)


class FileScheduling(LoadScopeScheduling):
    """The tests of a file run in one process, so that they share what the file makes."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FileScheduling:
    """Tell pytest-xdist to hand out whole files: its own option for that loses the groups on pytest 9.2."""
    return FileScheduling(config, log)


VOLGROWTH = Path(sys.executable).parent / "volgrowth"


@pytest.fixture(scope="session", autouse=True)
def trusted_models() -> Iterator[None]:
    """Let audits in the tests' own process go on with models that fail their check: most have random weights.

    A test of that check gives `trust_model=False`; a test that starts a process gives `--trust-model`.
    """
    from volgrowth.config import AuditConfig

    def build_trusting(**settings: Any) -> AuditConfig:
        return build(**{"trust_model": True, **settings})

    build = AuditConfig.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AuditConfig, "build", build_trusting)
        yield


@pytest.fixture(scope="session", autouse=True)
def state_folder(shared_folder: Path) -> Iterator[None]:
    """The state folder of the account, where it notes what it made: one for all processes of a test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(shared_folder / "state"))
        yield


@pytest.fixture(scope="session", autouse=True)
def ray_folder() -> Iterator[Path]:
    """A folder for the files of every Ray of the tests; its name is short, since the paths of sockets have to be."""
    folder = Path(tempfile.mkdtemp(prefix="vg-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
        # at Ray's own 15 its workers get nearly nothing while other programs run
        patch.setenv("RAY_worker_niceness", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield folder
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def own_ray() -> Iterator[None]:
    """Start a Ray, which `run_audit` uses while it is there, and end it."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def ray_session(ray_folder: Path) -> Iterator[None]:
    """One Ray for the tests of a file. One for the whole run would use 3% of a core in each process until the end."""
    with own_ray():
        yield


@pytest.fixture(scope="session", autouse=True)
def fits_kept() -> Iterator[None]:
    """Fit each regression once in a process: many tests calibrate the same scores, and a fit has no randomness."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    def fit_once(regressor: Any, features: np.ndarray, score: np.ndarray) -> Any:
        digest = hashlib.sha256(repr((regressor.get_params(), features.shape)).encode())
        digest.update(np.ascontiguousarray(features).tobytes())
        digest.update(np.ascontiguousarray(score).tobytes())
        known = fitted.setdefault(digest.digest(), {})
        if not known:
            known.update(vars(fit(regressor, features, score)))
        vars(regressor).update(known)
        return regressor

    fitted: dict[bytes, dict[str, Any]] = {}
    fit = HistGradientBoostingRegressor.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HistGradientBoostingRegressor, "fit", fit_once)
        yield


@pytest.fixture(scope="module", autouse=True)
def few_trees(request: pytest.FixtureRequest, fits_kept: None) -> Iterator[None]:
    """Calibrate with a tenth of the trees, where how well growth is calibrated is not what a module tests."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    def fit_few(regressor: Any, *data: Any) -> Any:
        return fit(regressor.set_params(max_iter=max(regressor.max_iter // 10, 1)), *data)

    fit = HistGradientBoostingRegressor.fit
    with pytest.MonkeyPatch.context() as patch:
        if not request.node.nodeid.startswith(ALL_TREES):
            patch.setattr(HistGradientBoostingRegressor, "fit", fit_few)
        yield


@pytest.fixture(scope="session", autouse=True)
def figures_kept() -> Iterator[dict[tuple[str, str, str], Any]]:
    """Draw a figure of a report once in a process for the same numbers: many tests audit the same images.

    Gives the figures that are known; a test that counts drawings forgets them.
    """
    from volgrowth.report.charts.plots import ReportCharts

    def add_once(charts: ReportCharts, name: str, figure: Any, alt: str, drawn: Any = None) -> None:
        if drawn is None:  # its numbers are not known here
            return add(charts, name, figure, alt)
        numbers = name, alt, repr(drawn)
        if numbers not in known:
            add(alone := ReportCharts(), name, figure, alt, drawn)
            known[numbers] = alone
        charts.files |= known[numbers].files
        charts.svg |= known[numbers].svg
        charts.numbers |= known[numbers].numbers

    known: dict[tuple[str, str, str], ReportCharts] = {}
    add = ReportCharts.add
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReportCharts, "add", add_once)
        yield known


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The URL of a real S3 server on loopback, one for the whole run."""
    with s3.s3_server() as url:
        yield url


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> s3.Bucket:
    """A fresh bucket of the S3 server; the environment points clients to that server, in child processes too."""
    s3.use(monkeypatch, s3_endpoint)
    return s3.Bucket(s3_endpoint)


@pytest.fixture(scope="session")
def s3_proxy(s3_endpoint: str) -> Iterator[s3.Proxy]:
    """One proxy for the whole run: a client of each new address would take longer to make than most tests."""
    proxy = s3.Proxy(s3_endpoint)
    yield proxy
    proxy.close()


@pytest.fixture
def proxy(s3_proxy: s3.Proxy, bucket: s3.Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3.Proxy]:
    """A proxy before the S3 server that breaks requests on demand; the environment points clients to it."""
    s3.use(monkeypatch, s3_proxy.url)
    yield s3_proxy
    s3_proxy.forget()


@pytest.fixture(scope="session")
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have `load_dataset` prepare its data sets in a folder of the test run."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    """(1797, 1, 8, 8) uint8."""
    from volgrowth.demo.cases import digit_images

    return digit_images()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder with random weights: 8x8 grey images, an attention block."""
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def digit_file(digits: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 digits as Parquet."""
    from volgrowth.demo.cases import write_image_parquet

    path = tmp_path_factory.mktemp("data") / "digits.parquet"
    write_image_parquet(path, digits[:150], [f"digit-{row:04d}" for row in range(150)])
    return path


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of the test run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def demo(shared_folder: Path, ray_folder: Path) -> Path:
    """The output of `make demo`: a model trained on the spot, its data, its audit. Made once in a test run.

    The first process that asks for it makes it, and others wait. A test that would change it takes a copy.
    """
    from volgrowth.commands.demo import run_demo

    folder = shared_folder / "demo-output"
    with (shared_folder / "demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "audit/verification").exists():
            with own_ray():
                run_demo(folder)
    return folder


def volgrowth(*arguments: object, cwd: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [VOLGROWTH, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False, **options
    )


def start_volgrowth(arguments: Sequence[object], cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start the command line in a process group of its own."""
    return subprocess.Popen(
        [VOLGROWTH, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Wait until something has happened, as long as the process that brings it about runs.

    There is no deadline, since that depends on how busy the machine is; a test that hangs is ended by its timeout.
    """
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)
