"""What the receiver does to the images: noise, and later coils and k-space artefacts."""
