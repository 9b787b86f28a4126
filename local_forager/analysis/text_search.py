"""CLIP's text tower, where its weights are at hand: a text to the vector its images lie near."""

from pathlib import Path
from typing import Any

import numpy as np

from weights.files import safetensors_header

DIMENSIONS = 512
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))


def why_not(directory: Path | None) -> str | None:
    """Why there can be no text search with these weights, in one sentence; None where there can."""
    if directory is None:
        return "Start local_forager with --clip_weights DIRECTORY to search by text."
    path = directory / "model.safetensors"
    try:
        names = safetensors_header(path)
    except OSError as error:
        return f"The CLIP weights {path} cannot be read ({error.strerror})."
    except ValueError as error:
        return f"The CLIP weights {path} cannot be read: the file {error}."
    if not any(name.startswith("text_model.") for name in names):
        return f"The CLIP weights in {directory} have the image tower only, no text tower."
    if not any(all((directory / name).exists() for name in files) for files in TOKENIZERS):
        return f"The CLIP weights in {directory} come without tokenizer (tokenizer.json)."
    return None


class TextTower:
    """transformers' CLIP text model, loaded at the first search."""

    def __init__(self, directory: Path) -> None:
        self._directory = str(directory)
        self._loaded: tuple[Any, Any] | None = None

    def vector(self, text: str) -> np.ndarray:
        """The text as a unit vector: float32 (512,). Called from one thread at a time."""
        import torch

        if self._loaded is None:
            from transformers import CLIPTextModelWithProjection, CLIPTokenizer

            self._loaded = (
                CLIPTokenizer.from_pretrained(self._directory, local_files_only=True),
                CLIPTextModelWithProjection.from_pretrained(
                    self._directory, use_safetensors=True, local_files_only=True
                ).eval(),
            )
        tokenizer, model = self._loaded
        inputs = tokenizer([text], truncation=True, max_length=77, return_tensors="pt")
        with torch.inference_mode():
            (vector,) = model(**inputs).text_embeds.numpy()
        if vector.shape != (DIMENSIONS,):
            raise ValueError(f"the text tower makes {len(vector)} numbers, not {DIMENSIONS}")
        return vector / np.linalg.norm(vector)
