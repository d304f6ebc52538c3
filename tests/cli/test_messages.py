import pytest

from lrzip.cli.messages import FLAGS, about_parameters, shortened, with_flags


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Give `model=PKG.MOD:NET`.", "Give `--model PKG.MOD:NET`."),
        ("Pass `trust=True`.", "Pass `--trust`."),
        ("Give `input_shapes=1,3,32,32`.", "Give `--input-shape 1,3,32,32`."),
        ("`layers=fc=rank:4` matches nothing.", "`--layer fc=rank:4` matches nothing."),
        ("`params=50%` is less.", "`params=50%` is less."),
        ("`key` cannot be factorized.", "`key` cannot be factorized."),
    ],
)
def test_parameters_with_values_are_shown_as_flags(text: str, shown: str) -> None:
    assert with_flags(text) == shown


def test_bare_names_are_flags_in_messages_about_parameters_alone() -> None:
    text = "`power_iterations` must be at least 0, got `energy`. See `unknown` and `seed=1`."
    shown = "`--power-iterations` must be at least 0, got `--energy`. See `unknown` and `--seed 1`."
    assert about_parameters(text) == shown


def test_every_parameter_has_one_flag_in_all_commands() -> None:
    assert FLAGS["metrics"] == "--metric"
    assert FLAGS["layers"] == "--layer"
    assert all(flag.startswith("--") and "_" not in flag for flag in FLAGS.values())


def test_long_names_are_cut_in_the_middle() -> None:
    name = "a." * 3000 + "weight"
    cut, quoted = f"{name[:80]}…{name[-80:]}", f"'{name}'."
    text = shortened(f"`{name}` of `net.pt` is odd, not '{name}'. Use `--skip {name}`.")
    assert text == f"`{cut}` of `net.pt` is odd, not {quoted[:80]}…{quoted[-80:]} Use `--skip {cut}`."
    assert shortened("`conv1` of `net.pt` is odd.") == "`conv1` of `net.pt` is odd."
