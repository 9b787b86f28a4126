"""Seeded random weights in the published formats, written once per checkout."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from common.program import ROOT

MAKE_WEIGHTS = Path(__file__).with_name("make_weights.py")


def write_text_tower(directory: Path) -> None:
    """A tiny CLIP text tower of seeded numbers, with a tokenizer of letters, in the hub's layout.

    It turns every text into a vector, which has nothing to do with any image.
    """
    import torch
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection
    from transformers.utils.logging import disable_progress_bar

    tokens = [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *tokens, *(token + "</w>" for token in tokens)]
    directory.mkdir(parents=True)
    (directory / "vocab.json").write_text(json.dumps({word: at for at, word in enumerate(words)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=512,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPTextModelWithProjection(config).eval().save_pretrained(directory)


def seeded_weights() -> Path:
    """A directory with R-50.pkl and clip-vit-base-patch32/, of seeded random numbers."""
    digest = hashlib.sha256(MAKE_WEIGHTS.read_bytes()).hexdigest()[:12]
    directory = ROOT / ".cache" / f"weights-{digest}"
    if not directory.exists():
        making = directory.with_name(f"{directory.name}-{os.getpid()}")
        subprocess.run([sys.executable, str(MAKE_WEIGHTS), str(making)], check=True)
        try:
            os.replace(making, directory)
        except OSError:  # another process was faster
            shutil.rmtree(making)
    return directory
