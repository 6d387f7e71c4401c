"""A latent diffusion transformer, Stable Audio's classes from diffusers: trained, loaded, sampled, asked and fingerprinted."""
