"""A headless Chromium, and the pictures that it takes for the README."""
