import pytest

from models.bundle import load_bundle
from services.runtime.settings import SettingError, as_dict, read
from services.watermark.config import WatermarkSettings, deployment_keys
from services.watermark.key import PUBLIC_KEY

KEY = bytes.fromhex("0b6ed1952c")


def key_of(bundle="csm-1b", **environ):
    settings = read(WatermarkSettings, {f"CSM_WATERMARK_{name}": value for name, value in environ.items()})
    return deployment_keys(settings, load_bundle(bundle), 5)[0].secret


def test_the_key_comes_from_the_environment_or_a_file(tmp_path):
    path = tmp_path / "key"
    path.write_text("11,110,209,149,44\n")
    assert key_of(KEY="0b6ed1952c") == key_of(KEY_FILE=str(path)) == KEY


def test_it_is_never_shown():
    shown = as_dict(read(WatermarkSettings, {"CSM_WATERMARK_KEY": "0b6ed1952c"}))
    assert shown["CSM_WATERMARK_KEY"] == "(set)" and "0b6ed1952c" not in str(shown)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "CSM_WATERMARK_KEY is not set"),
        ({"KEY": PUBLIC_KEY.hex()}, "the key that Sesame published"),
        ({"KEY": "0b6ed195"}, "CSM_WATERMARK_KEY is 4 bytes, must be exactly 5"),
        ({"KEY": "0000000000"}, "too regular"),
        ({"KEY": "open sesame"}, "CSM_WATERMARK_KEY must be 5 bytes"),
        ({"KEY": "0b6ed1952c", "KEY_FILE": "somewhere"}, "both set"),
        ({"KEY_FILE": "/nowhere/at/all"}, "CSM_WATERMARK_KEY_FILE='/nowhere/at/all': cannot be read"),
    ],
)
def test_what_is_no_key_stops_the_start(environ, message):
    with pytest.raises(SettingError, match=message) as error:
        key_of(**environ)
    assert environ.get("KEY", "?") not in str(error.value)


def test_the_embedded_bundle_may_use_the_public_key_and_says_so(caplog):
    assert key_of("embedded") == PUBLIC_KEY
    assert "public CSM key" in caplog.text
    caplog.clear()
    assert key_of("embedded", KEY="0b6ed1952c") == KEY
    assert not caplog.text


def test_a_copy_of_the_embedded_bundle_needs_a_key_of_its_own(tmp_path):
    (tmp_path / "bundle.toml").write_text((load_bundle("embedded").folder / "bundle.toml").read_text())
    with pytest.raises(SettingError, match="CSM_WATERMARK_KEY is not set"):
        key_of(str(tmp_path))
    assert key_of(str(tmp_path), KEY="0b6ed1952c") == KEY
