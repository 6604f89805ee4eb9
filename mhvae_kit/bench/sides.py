"""What a worker runs: the kit's side of a case, or that of other code (`mhvae_kit.bench.peers`)."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mhvae_kit.bench.cases import MODALITIES, OBSERVED, TARGET, Case
from mhvae_kit.bench.peers import import_peer, make_peer
from mhvae_kit.config import MHVAEConfig, TrainingConfig
from mhvae_kit.gaussian import FusionRule
from mhvae_kit.kernels.team import without_kernels
from mhvae_kit.memory import keep_freed_memory
from mhvae_kit.networks.authors import load_authors_checkpoint
from mhvae_kit.networks.mhvae import MHVAE
from mhvae_kit.training.distributed import Processes
from mhvae_kit.training.state import TrainingState
from mhvae_kit.training.step import Batch, train_step

SEED = 0
CPU = torch.device("cpu")
EDGE = 0.9  # values stay inside (-1, 1): exactly -1 is background, which one of the peers cuts out of its images


class Side(Protocol):
    """One implementation, ready to run a case."""

    def run(self) -> object:
        """Do the case's work once."""

    def save_output(self, path: Path) -> bool:
        """Store the us image at temperature 0 as .npy, where the case has one; says whether it did."""


def wait_for_gpu() -> None:
    """Until the GPU has done all that it was given: calls come back before it has."""
    torch.cuda.synchronize()


def operations(side: Side) -> int:
    """Floating-point operations of the convolutions and matrix products of one run, as the side does them.

    The sides run without gradients by `no_grad`: torch's counter fails on weight norm in inference mode. It sees
    torch's operations alone, so that these are what runs here.
    """
    with without_kernels(), FlopCounterMode(display=False) as counter:
        side.run()
    return counter.get_total_flops()


def prepare(task: dict[str, Any]) -> Side:
    """Make the side that a task describes: its networks, its inputs, its weights.

    Args:
        task: "case" (fields of a `Case`), "side" ("kit" or the kind of a peer), "checkout" (a peer's folder),
            "weights" (a file that the peer writes and the kit reads; None = drawn from a seed), "data_dir", "device"
            ("cpu", where nothing is said, or "cuda"), "fusion" (the kit's rule; "scale", the authors', unless said).
    """
    case, device = Case(**task["case"]), torch.device(task.get("device", "cpu"))
    if task["side"] != "kit":
        return make_peer(task["side"], Path(task["checkout"]), case, Path(task["weights"] or ""), device)
    if case.kind == "arithmetic":
        return Arithmetic(case, device)
    if case.kind == "loading":
        return Loading(case, task.get("data_dir"))
    if case.kind == "phantom":
        return Phantom(case, task.get("data_dir"))
    return Kit(case, task.get("weights"), device, fusion=task.get("fusion", "scale"))


def import_all(task: dict[str, Any]) -> None:
    """Import what the side needs, so that the memory of libraries is not counted as the case's."""
    if task["side"] != "kit":
        import_peer(task["side"], Path(task["checkout"]))
    if task["case"]["kind"] == "training":
        torch.optim.Adamax([torch.zeros(1)])  # the first optimiser of a process imports much


def model_config(case: Case, fusion: FusionRule = "scale") -> MHVAEConfig:
    """The authors' architecture in the width, depth and size of a preset."""
    names = MODALITIES[: max(2, case.n_observed + 1)]
    changes: dict[str, Any] = {"modalities": names, "decoder_blocks": 6, "expansion": 6, "fusion": fusion}
    changes |= {"expert_bias": False, "min_latent_channels": 1}
    if case.size is not None:
        changes["image_size"] = (case.size, case.size)
    return MHVAEConfig.preset(case.preset, **changes)


def seeded_model(config: MHVAEConfig) -> MHVAE:
    """The kit's model with the same weights in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return MHVAE(config)


def inputs(case: Case, config: MHVAEConfig, device: torch.device = CPU) -> dict[str, Tensor]:
    """Images of noise by modality, the same in every process: `slices` of them. A volume comes from the disk, so it is
    on the CPU.
    """
    generator = torch.Generator().manual_seed(SEED)
    shape, place = (case.slices, 1, *config.image_size), CPU if case.kind == "volume" else device
    return {m: ((torch.rand(shape, generator=generator) * 2 - 1) * EDGE).to(place) for m in config.modalities}


def temperatures(case: Case) -> list[float]:
    """As many as the case asks for, up to 1."""
    return [(i + 1) / case.n_temperatures for i in range(case.n_temperatures)]


@contextlib.contextmanager
def precision(case: Case, device: torch.device) -> Iterator[None]:
    """bfloat16 convolutions where the case asks for them."""
    with torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bfloat16"):
        yield


class Kit:
    """The kit's model through its plain interface: encode, decode, train_step."""

    def __init__(self, case: Case, weights: str | None, device: torch.device, fusion: FusionRule = "scale") -> None:
        self.case, self.device, config = case, device, model_config(case, fusion)
        self.images = inputs(case, config, device)
        self.observed = [m for m in config.modalities if m != TARGET][: case.n_observed]
        self.model = seeded_model(config)
        if weights is not None:
            self.model = load_authors_checkpoint(weights, config.modalities, image_size=config.image_size)
        self.model.to(device)
        self.generator = torch.Generator(device).manual_seed(SEED)
        works = {"volume": self._volume, "training": self._training_step}
        self.run: Callable[[], object] = works.get(case.kind, self._inference)
        if case.kind == "training":
            keep_freed_memory()  # as `train` does
            self._start_training(config)
        else:
            self.model.eval()

    def _start_training(self, config: MHVAEConfig) -> None:
        """The authors' objective: SmoothL1, one-sample KL, all three subsets, Adamax; without critics."""
        case = self.case
        stages = {"reconstruction_until": 0.0, "kl_ramp_until": 0.0, "gan": False, "accumulate": case.accumulate}
        stages["checkpoint_gradients"] = case.checkpoint_gradients
        terms = {"reconstruction": "smooth_l1_sum", "kl_estimate": "one_sample", "precision": case.precision}
        settings = TrainingConfig(model=config, batch_size=case.batch, **stages, **terms)  # type: ignore[arg-type]
        self.state = TrainingState(settings, self.device)
        self.state.model.load_state_dict(self.model.state_dict())
        self.model, self.processes = self.state.model, Processes()
        sources = [("noise", i) for i in range(case.batch)]
        self.batch = Batch(self.images, list(range(case.batch)), sources)

    def _training_step(self) -> None:
        train_step(self.state, self.batch, self.processes, Path(tempfile.gettempdir()))

    @torch.no_grad()
    def _inference(self) -> Tensor:
        """Encode once, decode at each temperature; the last image."""
        with precision(self.case, self.device):
            encoding = self.model.encode({m: self.images[m] for m in self.observed})
            taus = temperatures(self.case)
            subsets = [encoding.modalities] * len(taus)
            made = self.model.decode_subsets(encoding, subsets, taus, targets=(TARGET,), generator=self.generator)
        return made[-1].images[TARGET]

    @torch.no_grad()
    def _volume(self) -> np.ndarray:
        with precision(self.case, self.device):
            return stream_volume(self.model, self.images[OBSERVED][:, 0].numpy(), batch=self.case.batch)

    @torch.no_grad()
    def save_output(self, path: Path) -> bool:
        """Store the us image that t2 gives at temperature 0; after training steps there is nothing to compare."""
        if self.case.kind == "training":
            return False
        encoding = self.model.encode({OBSERVED: self.images[OBSERVED][: self.case.batch].to(self.device)})
        made = self.model.decode(encoding, targets=(TARGET,), temperature=0.0).images[TARGET]
        np.save(path, made.cpu().numpy())
        return True


def stream_volume(model: MHVAE, volume: np.ndarray, *, batch: int) -> np.ndarray:
    """The us volume of a t2 volume at temperature 0, `batch` slices at a time; memory does not grow with the depth.

    Args:
        model: Has t2 and us.
        volume: float32 (D, H, W) in [-1, 1].
        batch: Slices at a time.
    Returns:
        float32 (D, H, W).
    """
    made, device = np.empty_like(volume), next(model.parameters()).device
    for start in range(0, len(volume), batch):
        part = slice(start, start + batch)
        encoding = model.encode({OBSERVED: torch.from_numpy(volume[part]).to(device)[:, None]})
        image = model.decode(encoding, targets=(TARGET,), temperature=0.0).images[TARGET]
        made[part] = image[:, 0].float().cpu().numpy()
    return made


class Arithmetic:
    """One large convolution, whose time is arithmetic almost alone; its 128 channels keep all lanes busy."""

    CHANNELS = 128

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, size = case, case.size or MHVAEConfig.preset(case.preset).image_size[0]
        generator = torch.Generator().manual_seed(SEED)
        kind = torch.bfloat16 if case.precision == "bfloat16" else torch.float32
        shapes = (case.batch, self.CHANNELS, size, size), (self.CHANNELS, self.CHANNELS, 3, 3)
        drawn = (torch.randn(shape, generator=generator).to(kind) for shape in shapes)
        self.x, self.weight = (t.to(device, memory_format=torch.channels_last) for t in drawn)

    @torch.no_grad()
    def run(self) -> object:
        """The convolution."""
        return torch.nn.functional.conv2d(self.x, self.weight, padding=1)

    def save_output(self, path: Path) -> bool:
        """Nothing to compare."""
        return False


class Loading:
    """Batches of slices in a training's order, flips included."""

    def __init__(self, case: Case, data_dir: str | None) -> None:
        from mhvae_kit.data import SliceDataset, load_phantom

        dataset = load_phantom(case.preset, splits=["validation"], cache_dir=data_dir, show_progress=False)
        self.slices = SliceDataset(dataset, "validation", ("us", "t2"))
        self.config = TrainingConfig.from_preset(case.preset, batch_size=case.batch)
        self.step = 0

    def run(self) -> object:
        """One batch."""
        from mhvae_kit.training.batches import batch_of_step

        self.step += 1
        return batch_of_step(self.slices, self.config, self.step, range(self.config.batch_size), torch.device("cpu"))

    def save_output(self, path: Path) -> bool:
        """Nothing to compare."""
        return False


class Phantom:
    """One phantom patient, made anew."""

    def __init__(self, case: Case, data_dir: str | None) -> None:
        from mhvae_kit.data.phantom.atlas import load_atlas
        from mhvae_kit.data.phantom.presets import get_preset
        from mhvae_kit.files import default_cache_dir

        folder = Path(data_dir) if data_dir else default_cache_dir()
        self.preset, self.atlas = get_preset(case.preset), load_atlas(folder.expanduser().absolute())

    def run(self) -> object:
        """Anatomy and all images of the patient."""
        from mhvae_kit.data.phantom.generate import make_images, make_patient

        return make_images(make_patient("phantom-test-000", self.preset, self.atlas))

    def save_output(self, path: Path) -> bool:
        """Nothing to compare."""
        return False
