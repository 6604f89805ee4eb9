"""Networks: building blocks, the MHVAE and the MVAE on its backbone, their critics, and their storage."""

from mhvae_kit.networks.backbone import MultimodalVAE
from mhvae_kit.networks.discriminator import PatchDiscriminator
from mhvae_kit.networks.mhvae import MHVAE, Encoding, Synthesis
from mhvae_kit.networks.mvae import MVAE

__all__ = ["MHVAE", "MVAE", "Encoding", "MultimodalVAE", "PatchDiscriminator", "Synthesis"]
