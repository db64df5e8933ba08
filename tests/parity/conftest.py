"""Our model and transformers' over the same random weights."""

from __future__ import annotations

import pytest

from models.bundle import GeneratorPart
from services.backbone.model import CsmModel, build_model, init_random
from support.tiny_csm import make_stock, tiny_part
from support.transformers_names import to_transformers


@pytest.fixture(scope="module", params=[32, 4], ids=["32 codebooks", "4 codebooks"])
def part(request: pytest.FixtureRequest) -> GeneratorPart:
    return tiny_part(request.param)


@pytest.fixture(scope="module")
def model(part: GeneratorPart) -> CsmModel:
    return init_random(build_model(part), seed=11)


@pytest.fixture(scope="module")
def stock(model: CsmModel):
    """transformers' CsmForConditionalGeneration with `model`'s weights through our key map."""
    stock = make_stock(model.part)
    state = dict(to_transformers(name, tensor, model.part) for name, tensor in model.state_dict().items())
    missing, unexpected = stock.load_state_dict(state, strict=False)
    assert not unexpected
    # tied to the audio embeddings, so it needs no seq of its own; the codec is not ours
    assert [name for name in missing if not name.startswith("codec_model.")] == [
        "depth_decoder.model.embed_tokens.weight"
    ]
    return stock
