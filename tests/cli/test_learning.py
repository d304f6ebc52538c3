import pytest

from lrzip.cli.learning import distillation_of, learning_of, preparation_of, score_text, scores_text, settings_of
from lrzip.cli.verbs import ANALYZE, COMPRESS, FINETUNE
from lrzip.training.losses import Distillation
from lrzip.training.settings import Settings
from tests.support.commands import given


def test_settings_are_those_of_the_command() -> None:
    assert settings_of(given(FINETUNE)) == Settings()
    assert settings_of(given(FINETUNE, epochs=2, clip=0.5, shard=True)) == Settings(epochs=2, clip=0.5, shard=True)
    assert settings_of(given(COMPRESS)).epochs == 3
    assert settings_of(given(ANALYZE, lr=0.1)) == Settings(lr=0.1)


def test_a_teacher_has_weights_only_if_an_option_sets_them() -> None:
    assert distillation_of(given(FINETUNE)) is None
    assert distillation_of(given(ANALYZE)) is None
    found = distillation_of(given(FINETUNE, temperature=2.0, match_layers=0.5))
    assert found == Distillation(temperature=2.0, layers=0.5)


def test_inputs_are_prepared_as_options_say() -> None:
    options = given(COMPRESS, mean="0.5,0.25", std="1,2", augment="flip")
    assert preparation_of(options).mean == (0.5, 0.25)
    assert preparation_of(options).augment
    assert not preparation_of(options, augment=False).augment


def test_data_and_metrics_are_those_of_the_command() -> None:
    found = learning_of(given(ANALYZE, data="x.npz", metrics=["r2"], val_fraction=0.3, teacher="big.pt", workers=2))
    assert (found.data, found.metrics, found.val_fraction, found.teacher, found.workers) == (
        "x.npz",
        ["r2"],
        0.3,
        "big.pt",
        2,
    )
    assert found.distillation == Distillation()
    assert learning_of(given(ANALYZE, data="x.npz")).metrics == ()


@pytest.mark.parametrize(
    ("name", "value", "text"), [("accuracy", 0.5, "50.00 %"), ("top5", 1, "100.00 %"), ("r2", 0.5, "0.5")]
)
def test_shares_are_percentages(name: str, value: float, text: str) -> None:
    assert score_text(name, value) == text
    assert scores_text({name: value, "mae": 2.0}) == f"{name} {text} mae 2"
