"""A client of google-cloud-storage for the storage emulator, beside the program's own."""

import os

from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

import gcs

# It would ask for each bucket's metadata in the background.
os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")


def emulated_client() -> storage.Client:
    """A client for the emulator that STORAGE_EMULATOR_HOST names."""
    return storage.Client(
        project="emulator",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": gcs.emulator_host()},
    )
