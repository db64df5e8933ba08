import shutil

import pytest
import torch
import yaml

from models.files import PartError
from services.watermark.hparams import Hparams, read_hparams
from services.watermark.weights import FILES, build_nets, load_nets, write_random
from support.watermark_pair import stock_model

# The public 44.1 kHz model's values (sony/silentcipher, 44_1_khz/73999_iteration/hparams.yaml) and,
# as that file does, settings that only training uses.
PUBLIC_YAML = """
SR: 44100
N_FFT: 4096
HOP_LENGTH: 2048
message_band_size: 1024
message_dim: 5
message_len: 21
message_sdr: 47
n_messages: 1
model_type: "n_fft"
enc_n_layers: 3
dec_c_n_layers: 4
ensure_negative_message: true
ensure_constrained_message: false
frame_level_normalization: false
utterance_level_normalization: true
no_normalization: false
batch_size: 10
lr: 0.0001
mp3_aug: true
"""


@pytest.fixture
def files(tmp_path, untrained_files):
    for role, path in untrained_files.items():
        shutil.copy(path, tmp_path / FILES[role])
    return {role: tmp_path / name for role, name in FILES.items()}


def test_the_public_hparams_are_the_defaults(tmp_path):
    path = tmp_path / "hparams.yaml"
    path.write_text(PUBLIC_YAML)
    assert read_hparams(path) == Hparams()
    path.write_text(Hparams().to_yaml())
    assert read_hparams(path) == Hparams()


def test_the_public_shapes_have_the_public_number_of_weights():
    with torch.device("meta"):
        nets = build_nets(Hparams())
    counts = [sum(p.numel() for p in net.parameters()) for net in (nets.enc_c, nets.dec_c, nets.dec_m)]
    assert counts == [43_968, 499_012, 2_378_773]


def test_our_nets_and_the_stock_packages_are_the_same(files):
    ours, stock = load_nets(files), stock_model(files)
    for mine, theirs in ((ours.enc_c, stock.enc_c), (ours.dec_c, stock.dec_c), (ours.dec_m, stock.dec_m[0])):
        assert not mine.training and theirs.training
        assert all(
            torch.equal(a, b) for a, b in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True)
        )


def test_names_left_by_data_parallel_are_taken(files):
    plain = load_nets(files).enc_c.state_dict()
    torch.save({f"module.{name}": tensor for name, tensor in plain.items()}, files["enc_c"])
    loaded = load_nets(files).enc_c.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in plain.items())


def test_weights_come_from_the_seed_alone(tmp_path):
    shape = Hparams(sample_rate_hz=24000, n_fft=64, hop_length=32, message_band_size=20)
    before = torch.random.get_rng_state()
    one, same, other = (load_nets(write_random(tmp_path / str(i), shape, seed)) for i, seed in enumerate((7, 7, 8)))
    assert torch.equal(before, torch.random.get_rng_state())
    name = "main.0.conv.weight"
    assert torch.equal(one.dec_c.state_dict()[name], same.dec_c.state_dict()[name])
    assert not torch.equal(one.dec_c.state_dict()[name], other.dec_c.state_dict()[name])


@pytest.mark.parametrize("role", ["enc_c", "dec_c", "dec_m"])
def test_truncated_missing_and_foreign_files_are_one_clear_error(files, role):
    whole = files[role].read_bytes()
    files[role].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PartError, match=f"watermark: .*{files[role].name}.*cannot be read"):
        load_nets(files)
    torch.save({"main.0.conv.weight": torch.zeros(3)}, files[role])
    with pytest.raises(PartError, match=f"{files[role].name}"):
        load_nets(files)
    files[role].unlink()
    with pytest.raises(PartError, match=f"{files[role].name}"):
        load_nets(files)


def test_weights_of_another_shape_are_refused(files):
    table = yaml.safe_load(files["hparams"].read_text())
    table["message_band_size"] = 41
    files["hparams"].write_text(yaml.safe_dump(table))
    with pytest.raises(PartError, match=r"linear\.weight is \[40, 5\], expected \[41, 5\]"):
        load_nets(files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"N_FFT": None}, "N_FFT is missing"),
        ({"N_FFT": "many"}, "N_FFT is 'many', must be of type int"),
        ({"HOP_LENGTH": 64}, "HOP_LENGTH must be half of N_FFT"),
        ({"message_band_size": 999}, "message_band_size must be between 1 and 129"),
        ({"message_dim": 4}, "message_dim must be 5"),
        ({"message_len": 20}, "message_len must be four symbols a byte"),
        ({"ensure_negative_message": False}, "ensure_negative_message must be True"),
        ({"no_normalization": True}, "no_normalization must be False"),
        ({"n_messages": 2}, "n_messages must be 1"),
    ],
)
def test_hparams_that_cannot_be_used_name_the_key(files, change, message):
    table = yaml.safe_load(files["hparams"].read_text()) | change
    files["hparams"].write_text(yaml.safe_dump({k: v for k, v in table.items() if v is not None}))
    with pytest.raises(PartError, match=message):
        load_nets(files)


@pytest.mark.parametrize("text", ["", "- 1\n", "SR: [", "\x00"])
def test_hparams_that_are_no_table_are_refused(files, text):
    files["hparams"].write_text(text)
    with pytest.raises(PartError, match=r"hparams\.yaml"):
        load_nets(files)
