"""What attribution has to beat: similarities of sound (CLAP, CLEWS), of activations (LPIPS), and representer points."""
