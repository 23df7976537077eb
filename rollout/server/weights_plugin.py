"""vLLM plugin: the weight-transfer back end `ponder_file`, which reads a safetensors file both sides see.
What it imports at module top is loaded already where vLLM calls its entry point; model code follows with an update."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer import base
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory


def register() -> None:
    """Entry point. vLLM may call it more than once in a process."""
    with contextlib.suppress(ValueError):  # registered already
        WeightTransferEngineFactory.register_engine("ponder_file", FileEngine)


@dataclass
class FileInitInfo(base.WeightTransferInitInfo):
    directory: str  # the learner's, to be told early when the server can't see it


@dataclass
class FileUpdateInfo(base.WeightTransferUpdateInfo):
    path: str  # of a safetensors file of HF names and full shapes inside PONDER_SYNC_DIR


class FileEngine(base.WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """Loads checkpoint-format weights from a file through vLLM's layerwise reload."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo
    _reloading = False  # layers wait for weights, or for the end of the update

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        checked_path(init_info.directory)

    def start_weight_update(self) -> None:
        """Nothing yet: the layers are emptied by the first file that proves readable, so a bad one changes nothing."""

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        from vllm.model_executor.model_loader import reload

        path = checked_path(update_info.path)
        if path.suffix != ".safetensors":
            raise ValueError(f"{path.name} is not a .safetensors file")
        with safe_open(path, framework="pt") as file:  # checks the header against the file's size
            if self._reloading:  # an update that was never finished: what it did not load is put back
                reload.finalize_layerwise_reload(self.model, self.model_config)
            reload.initialize_layerwise_reload(self.model)
            self._reloading = True
            self.model.load_weights((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader import reload

        reload.finalize_layerwise_reload(self.model, self.model_config)
        self._reloading = False
        refresh_heads(self.model)

    def shutdown(self) -> None:
        """Nothing is held between updates."""


def refresh_heads(model: torch.nn.Module) -> None:
    """Rebuild what embeddings and heads, tied or not, compute with: on a CPU prepacked copies that a reload leaves."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding):
            module.quant_method.process_weights_after_loading(module)


def checked_path(path: str) -> Path:
    """The path, resolved; ValueError unless it lies inside PONDER_SYNC_DIR (symlinks followed) and exists."""
    root = os.environ.get("PONDER_SYNC_DIR")
    if not root:
        raise ValueError("PONDER_SYNC_DIR is not set for this server: it accepts no weights")
    real = Path(path).resolve(strict=True)
    if not real.is_relative_to(Path(root).resolve()):
        raise ValueError(f"{path} does not lie inside the server's PONDER_SYNC_DIR={root}")
    return real
