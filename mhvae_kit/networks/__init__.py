"""Networks: building blocks, the MHVAE, its critics, and their storage."""

from mhvae_kit.networks.discriminator import PatchDiscriminator
from mhvae_kit.networks.mhvae import MHVAE, Encoding, Synthesis

__all__ = ["MHVAE", "Encoding", "PatchDiscriminator", "Synthesis"]
