"""Text search: CLIP's text tower turns a text into a vector near the images that show it."""

from pathlib import Path
from typing import Any

import numpy as np

from common.errors import WeightsError
from dataset.arrays import DIMENSIONS
from weights.clip import safetensors_header

TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
TextTower = tuple[Any, Any]  # transformers' tokenizer and CLIP text model


def why_not(directory: Path | None) -> str | None:
    """Why text search is not possible with these weights, in one sentence; None if it is."""
    if directory is None:
        return "Start local_forager with --clip_weights DIRECTORY to search by text."
    try:
        names = safetensors_header(directory / "model.safetensors")
    except WeightsError as error:
        return error.message
    if not any(name.startswith("text_model.") for name in names):
        return f"The CLIP weights in {directory} have no text tower, only the image tower."
    if not any(all((directory / name).exists() for name in files) for files in TOKENIZERS):
        return f"The CLIP weights in {directory} have no tokenizer (tokenizer.json)."
    return None


def text_tower(directory: Path) -> TextTower:
    from transformers import CLIPTextModelWithProjection as TextModel
    from transformers import CLIPTokenizer

    model = TextModel.from_pretrained(directory, local_files_only=True, use_safetensors=True)
    return CLIPTokenizer.from_pretrained(directory, local_files_only=True), model.eval()


def text_vector(tower: TextTower, text: str) -> np.ndarray:
    """The text as a unit vector: float32 (512,). Called from one thread at a time."""
    import torch

    tokenizer, model = tower
    inputs = tokenizer([text], truncation=True, max_length=77, return_tensors="pt")
    with torch.inference_mode():
        (vector,) = model(**inputs).text_embeds.numpy()
    if len(vector) != DIMENSIONS["clip"]:
        raise ValueError(f"the text tower makes {len(vector)} numbers, not {DIMENSIONS['clip']}")
    return vector / np.linalg.norm(vector)
