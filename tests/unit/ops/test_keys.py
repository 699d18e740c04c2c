import stat

from headrace.ops.keys import keys_path, with_kept_keys, with_keys
from headrace.settings import Settings


def test_keys_are_random_and_only_their_owner_may_read_them(settings: Settings) -> None:
    made = with_keys(settings)
    keys = [made.event_keys, made.read_keys, made.admin_keys]
    assert [len(key) for key in keys] == [32] * 3
    assert len(set(keys)) == 3
    assert stat.S_IMODE(keys_path(settings).stat().st_mode) == 0o600


def test_keys_stay_the_same_from_one_start_to_the_next(settings: Settings) -> None:
    assert with_keys(settings) == with_keys(settings)
    assert with_kept_keys(settings) == with_keys(settings)


def test_a_key_of_the_environment_wins_and_is_not_written_down(settings: Settings) -> None:
    made = with_keys(settings.model_copy(update={"event_keys": "from-outside"}))
    assert made.event_keys == "from-outside"
    assert keys_path(settings).read_text() == (
        f"HEADRACE_READ_KEYS={made.read_keys}\nHEADRACE_ADMIN_KEYS={made.admin_keys}\n"
    )


def test_without_a_file_kept_keys_are_the_settings_themselves(settings: Settings) -> None:
    assert with_kept_keys(settings) == settings
    assert not keys_path(settings).exists()
