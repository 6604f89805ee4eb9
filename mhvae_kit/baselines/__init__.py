"""The methods MHVAE is compared with in Table 1, one module each, all with the face of `Translator`."""
