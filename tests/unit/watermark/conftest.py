"""Nets for the watermark tests: a pair that works (see tests/support/watermark_pair.py) and an untrained one."""

import pytest

from services.watermark.hparams import Hparams
from services.watermark.weights import load_nets, write_random
from support.watermark_pair import TINY, TINY_44K, stock_model, write_pair

UNTRAINED = Hparams(sample_rate_hz=24000, n_fft=256, hop_length=128, message_band_size=40, message_sdr_db=20.0)
UNTRAINED_44K = Hparams(n_fft=512, hop_length=256, message_band_size=120, message_sdr_db=20.0)


@pytest.fixture(scope="session")
def pair_files(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), TINY)


@pytest.fixture(scope="session")
def pair(pair_files):
    return load_nets(pair_files)


@pytest.fixture(scope="session")
def stock_pair(pair_files):
    return stock_model(pair_files)


@pytest.fixture(scope="session")
def pair_44k_files(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair_44k"), TINY_44K)


@pytest.fixture(scope="session")
def untrained_files(tmp_path_factory):
    return write_random(tmp_path_factory.mktemp("untrained"), UNTRAINED, seed=0)


@pytest.fixture(scope="session")
def untrained(untrained_files):
    return load_nets(untrained_files)


@pytest.fixture(scope="session")
def untrained_44k(tmp_path_factory):
    return load_nets(write_random(tmp_path_factory.mktemp("untrained_44k"), UNTRAINED_44K, seed=1))
