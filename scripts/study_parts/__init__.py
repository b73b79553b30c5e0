"""What `scripts/study` is made of: claims, the cells that measure them, and the page that tells."""
