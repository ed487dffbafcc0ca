"""Qwen2.5-VL in this process, on transformers without torchvision.

transformers' own processor needs torchvision (for video), so this does its work on pictures by hand: cut each into
patches (`Qwen2VLImageProcessorPil`), write as many `<|image_pad|>` into the chat as the model makes of it, and say in
`mm_token_type_ids` which tokens those are. Without the last the model runs too, but places the patches in a row
instead of in a plane, and answers differently.
"""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from reward_models.multimodal_folder import ORIGIN, faults

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import Qwen2_5_VLForConditionalGeneration

    from reward_models.multimodal_questions import Question

__all__ = ["LocalQwen"]

MIN_PIXELS, MAX_PIXELS = 4 * 28 * 28, 256 * 28 * 28
"""What a picture is resized to, at least and at most: 4 to 256 tokens. 512² is resized to 448², 256² stays."""
SYSTEM = "You are a helpful assistant."
"""What Qwen2.5-VL was tuned with."""
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")


class LocalQwen:
    """`Transport` on a network in this process; one question after another, or a few at a time (`batch`)."""

    def __init__(
        self,
        network: Qwen2_5_VLForConditionalGeneration,
        tokenizer: Tokenizer,
        *,
        model: str,
        max_tokens: int = 512,
        max_pixels: int = MAX_PIXELS,
        batch: int = 4,
    ) -> None:
        """Use a network in eval mode and the tokenizer of its folder.

        Raises ValueError for a tokenizer that lacks one of Qwen's marks, or knows the pad token by another number.
        """
        from transformers import Qwen2VLImageProcessorPil

        known = {mark: tokenizer.token_to_id(mark) for mark in SPECIAL}
        ids = {mark: number for mark, number in known.items() if number is not None}
        if missing := [mark for mark in SPECIAL if mark not in ids]:
            raise ValueError(f"the tokenizer does not know {missing[0]}: it is not that of a Qwen2.5-VL")
        if ids["<|image_pad|>"] != network.config.image_token_id:
            raise ValueError(
                f"the tokenizer's <|image_pad|> is {ids['<|image_pad|>']}, the network's "
                f"{network.config.image_token_id}: they are not of one model"
            )
        # A prompt is data: "<|im_end|>" in it must be read as these characters.
        tokenizer.encode_special_tokens = True
        vision: Any = network.config.vision_config
        self.model = model
        self._network = network.train(False).requires_grad_(False)
        self._tokenizer = tokenizer
        self._ids = ids
        self._merged = vision.spatial_merge_size**2
        self._processor = Qwen2VLImageProcessorPil(
            min_pixels=min(MIN_PIXELS, max_pixels),
            max_pixels=max_pixels,
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            merge_size=vision.spatial_merge_size,
        )
        self._max_tokens = max_tokens
        self._batch = batch
        self._one_at_a_time = threading.Lock()

    @classmethod
    def from_folder(
        cls, folder: Path, *, device: str = "cpu", max_tokens: int = 512, batch: int = 4
    ) -> LocalQwen:
        """Load a published folder (config.json, tokenizer.json, *.safetensors), in bfloat16 on a GPU.

        Nothing is downloaded and no code of the folder runs. Raises ValueError naming the file, and the key, that is
        missing or wrong.
        """
        from tokenizers import Tokenizer
        from transformers import Qwen2_5_VLForConditionalGeneration

        if wrong := faults(folder):
            raise ValueError(
                f"{folder.name} is no whole folder of a Qwen2.5-VL: {'; '.join(wrong)}. Put the whole folder there "
                f"(from {ORIGIN}, for example), or serve another model by an endpoint"
            )
        loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32 if device == "cpu" else torch.bfloat16,
            ignore_mismatched_sizes=True,  # they are refused below, like what is missing: both would be random
            output_loading_info=True,
        )
        network, report = loaded
        _refuse_gaps(folder, report)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        torch.nn.Module.to(network, device)  # in place; transformers' own signature is narrower
        return cls(network, tokenizer, model=folder.name, max_tokens=max_tokens, batch=batch)

    def answer(self, questions: Sequence[Question]) -> list[str]:
        """Answer as `Transport.answer` says, greedily: the same question has the same answer."""
        texts: list[str] = []
        with self._one_at_a_time:
            for start in range(0, len(questions), self._batch):
                texts += self._generate([self.encode(one) for one in questions[start : start + self._batch]])
        return texts

    def encode(self, question: Question) -> dict[str, Tensor]:
        """Make what the network takes of one question: ids, masks and token kinds (1, L), and the pictures' patches."""
        pictures = [Image.open(io.BytesIO(one)).convert("RGB") for one in question.pictures]
        patches = self._processor(images=pictures, return_tensors="pt") if pictures else {}
        seen: list[int] = []
        for thw in patches["image_grid_thw"].tolist() if pictures else []:
            pads = [self._ids["<|image_pad|>"]] * (thw[0] * thw[1] * thw[2] // self._merged)
            seen += [self._ids["<|vision_start|>"], *pads, self._ids["<|vision_end|>"]]
        said = self._words(question.said)
        ids = [
            *self._turn("system", self._words(SYSTEM)),
            *self._turn("user", seen + said if question.pictures_first else said + seen),
            self._ids["<|im_start|>"],
            *self._words("assistant\n"),
        ]
        input_ids = torch.tensor([ids])
        return {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "mm_token_type_ids": (input_ids == self._ids["<|image_pad|>"]).to(torch.int64),
            **patches,
        }

    @torch.no_grad()
    def _generate(self, encoded: Sequence[dict[str, Tensor]]) -> list[str]:
        """Answer a batch, padded on the left: the new tokens of all begin at one place."""
        longest = max(one["input_ids"].shape[1] for one in encoded)
        end = self._ids["<|im_end|>"]
        batch = {
            name: torch.cat(
                [_padded(one[name], longest, end if name == "input_ids" else 0) for one in encoded]
            )
            for name in ("input_ids", "attention_mask", "mm_token_type_ids")
        }
        for name in ("pixel_values", "image_grid_thw"):
            if parts := [one[name] for one in encoded if name in one]:
                batch[name] = torch.cat(parts)
        answers = self._network.generate(
            **{name: tensor.to(self._network.device) for name, tensor in batch.items()},
            max_new_tokens=self._max_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=end,
            pad_token_id=end,
        )
        new = answers[:, longest:].tolist()
        return [self._tokenizer.decode(row, skip_special_tokens=True) for row in new]

    def _turn(self, who: str, content: list[int]) -> list[int]:
        start, end = self._ids["<|im_start|>"], self._ids["<|im_end|>"]
        return [start, *self._words(f"{who}\n"), *content, end, *self._words("\n")]

    def _words(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def _refuse_gaps(folder: Path, report: Mapping[str, Any]) -> None:
    """Raise ValueError unless each tensor of the network came from the files."""
    gaps = []
    if keys := sorted(report["missing_keys"]):
        gaps.append(f"they lack {len(keys)} tensor{'s' * (len(keys) > 1)}, first {keys[0]}")
    if wrong := sorted(report["mismatched_keys"]):
        key, found, expected = wrong[0]
        gaps.append(f"{key} is {tuple(found)} where {tuple(expected)} is expected")
    if gaps:
        raise ValueError(
            f"the weights in {folder.name} do not fit its config.json: {' and '.join(gaps)}. Fetch the folder anew"
        )


def _padded(row: Tensor, length: int, value: int) -> Tensor:
    return torch.nn.functional.pad(row, (length - row.shape[1], 0), value=value)
