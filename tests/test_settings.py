"""Every bound of a setting: the last value within it is taken, the first beyond it refused with place and bound."""

from __future__ import annotations

import pytest

from penstock.errors import SettingsError
from penstock.settings import SETTINGS, Setting, Settings, read_settings

BOUNDED = [setting for setting in SETTINGS if setting.kind in ("integer", "bytes", "duration")]


def read(setting: Setting, value: int) -> Settings:
    written = f"{value}us" if setting.kind == "duration" else value
    return read_settings({}, environment={setting.variable: str(written)})


@pytest.mark.parametrize("setting", BOUNDED, ids=lambda setting: setting.name)
def test_a_number_has_a_lowest_and_a_highest_value(setting: Setting) -> None:
    for value in (setting.lowest, setting.highest):
        assert read(setting, value)[setting.name] == value
    place = rf'setting "{setting.name}" \({setting.variable}\): '
    beyond = f"the most is {setting.text(setting.highest)}$|is longer than 1,000 years"
    with pytest.raises(SettingsError, match=rf"{place}.*({beyond})"):
        read(setting, setting.highest + 1)
    if setting.lowest:
        with pytest.raises(SettingsError, match=place + f"the least is {setting.text(setting.lowest)}$"):
            read(setting, setting.lowest - 1)


@pytest.mark.parametrize("setting", BOUNDED, ids=lambda setting: setting.name)
def test_a_default_is_within_its_bounds(setting: Setting) -> None:
    value = read_settings({}, environment={})[setting.name]
    assert value is None or setting.lowest <= value <= setting.highest


def test_a_range_is_written_as_its_values_are() -> None:
    shown = {setting.name: setting.range for setting in SETTINGS}
    assert (shown["port"], shown["commit_bytes"], shown["idle_time"]) == ("0 to 65535", "4KiB to 1MiB", "10ms to 1d")
    assert (shown["data"], shown["diagnostics"]) == ("", "lines, json")
