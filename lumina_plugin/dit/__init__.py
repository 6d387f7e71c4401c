"""A latent diffusion transformer of Stable Audio's classes (diffusers): trained, loaded, sampled, fingerprinted."""
