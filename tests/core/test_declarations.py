import inspect
from dataclasses import dataclass
from typing import ClassVar, TypedDict

import pytest

from lrzip.core.declarations import Options, declared, documented, keyword, option


@dataclass(frozen=True)
class Cooking:
    heading: ClassVar[str] = "Kitchen"

    cook_time: float = option(1.5, "Hours in the oven.", metavar="HOURS")
    dishes: tuple[str, ...] = option((), "Names of dishes.", flag="--dish", heading="Menu", parsed=list[str] | None)
    helper: object = keyword(None, "Whoever helps.")


class CookingOptions(TypedDict, total=False):
    cook_time: float
    helper: object


def test_flags_and_headings_come_from_names_unless_they_are_declared() -> None:
    time, dishes, helper = declared(Cooking)
    assert (time.flag, time.heading, time.usage) == ("--cook-time", "Kitchen", "--cook-time HOURS")
    assert (dishes.flag, dishes.heading, dishes.usage) == ("--dish", "Menu", "--dish")
    assert helper.flag == ""
    assert [item.is_repeatable for item in (time, dishes, helper)] == [False, True, False]


def test_a_group_has_the_given_values_and_defaults_for_the_others() -> None:
    given = Options("cook", CookingOptions, {"cook_time": 3.0})
    assert given[Cooking] == Cooking(cook_time=3.0)


def test_an_unknown_keyword_is_a_type_error_like_any_other() -> None:
    with pytest.raises(TypeError, match=r"cook\(\) got an unexpected keyword argument 'dishes'"):
        Options("cook", CookingOptions, {"cook_time": 3.0, "dishes": ("soup",)})


def test_keywords_stand_in_the_signature_and_the_docstring() -> None:
    @documented(CookingOptions, Cooking)
    def cook(meal: str, **options: object) -> str:
        """Cook a meal.

        Args:
            meal: Its name.
            **options: Keywords, as declared in the group
                above.

        Returns:
            The meal.
        """
        return f"{meal}{options}"

    signature = inspect.signature(cook)
    assert list(signature.parameters) == ["meal", "cook_time", "helper"]
    assert signature.parameters["cook_time"].default == 1.5
    lines = [line.strip() for line in (cook.__doc__ or "").splitlines()]
    assert lines[2:8] == [
        "Args:",
        "meal: Its name.",
        "cook_time: Hours in the oven.",
        "helper: Whoever helps.",
        "",
        "Returns:",
    ]
    assert cook("soup", helper=1) == "soup{'helper': 1}"
