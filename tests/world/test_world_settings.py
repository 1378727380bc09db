from fractions import Fraction

import pytest

from longvid_train.errors import UserError
from longvid_train.world.settings import BuildSettings, SetSettings, parse_duration, parse_fps, parse_set, parse_world


def test_a_world_is_read_from_plain_values() -> None:
    world = parse_world(
        {
            "seed": 5,
            "defaults": {"fps": 2, "size_px": 64},
            "sets": [
                {"name": "a", "videos": {"train": 3}, "duration_s": [4, 8], "style": "caption"},
                {"name": "b", "images": {"val": 2}, "fps": "30000/1001", "kinds": ["detail"]},
            ],
        },
        where="w.yaml",
    )
    first, second = world.sets
    assert world.seed == 5
    assert (first.fps, first.size_px, first.duration_s, first.splits) == (2, 64, (4.0, 8.0), ("train",))
    assert (second.fps, second.kinds, second.splits) == (Fraction(30000, 1001), ("detail",), ("val",))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fsp": 4}, "did you mean 'fps'"),
        ({"kinds": ["neddle"]}, "did you mean 'needle'"),
        ({"kinds": []}, "kinds is empty"),
        ({"kinds": ["subtitle"]}, "switch subtitles on"),
        ({"fps": 0}, "fps 0 must lie between"),
        ({"fps": 0.5}, "objects would be missed"),
        ({"fps": "fast"}, "'fast' must be a number"),
        ({"fps": "1/0"}, "must be a number"),
        ({"duration_s": 1}, "duration 1-1 s"),
        ({"duration_s": "8-4"}, "duration 8-4 s"),
        ({"duration_s": "long"}, "'long' must be seconds"),
        ({"duration_s": float("nan")}, "duration nan"),
        ({"size_px": 57}, "even number"),
        ({"size_px": 16}, "even number"),
        ({"size_px": "big"}, "must be of type int"),
        ({"subtitles": 1}, "must be of type bool"),
        ({"questions_per_episode": True}, "must be of type int"),
        ({"questions_per_episode": 0}, "at least 1"),
        ({"style": "poem"}, "style 'poem'"),
        ({"crf": 99}, "crf 99"),
        ({"gop": 0}, "gop 0"),
        ({"overlap": 2}, "overlap 2"),
        ({"most_objects": 0}, "most_objects 0"),
        ({"image_format": "gif"}, "'gif'"),
        ({"videos": {"trian": 3}}, "did you mean 'train'"),
        ({"videos": {"train": -1}}, "train=-1"),
        ({"videos": {"train": 1.5}}, "train=1.5"),
        ({"videos": {"train": 1_000_001}}, "at most"),
        ({"videos": {}}, "is empty"),
        ({"videos": 3}, "must be a mapping"),
        ({"name": "../up"}, "folder name"),
        ({"images": {"train": 1}, "kinds": ["order"]}, "images can be asked"),
    ],
)
def test_a_mistake_gives_one_line_that_names_it(values: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_set({"videos": {"train": 1}, **values}, where="w.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "must be a mapping"),
        ({}, "'sets' must be a list"),
        ({"sets": []}, "no sets"),
        ({"sets": [1]}, "set 0 must be a mapping"),
        ({"sets": [{"videos": {"train": 1}}], "seed": "x"}, "seed 'x'"),
        ({"sets": [{"videos": {"train": 1}}], "sede": 1}, "did you mean 'seed'"),
        ({"sets": [{"videos": {"train": 1}}, {"videos": {"train": 1}}]}, "different names"),
        ({"sets": [{"videos": {"train": 1}}], "seed": -1}, "zero or more"),
    ],
)
def test_a_wrong_world_is_refused(value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_world(value, where="w.yaml")


def test_durations_and_rates() -> None:
    assert parse_duration("4-8.5") == (4.0, 8.5)
    assert parse_duration(8) == (8.0, 8.0)
    assert parse_fps(29.97) == Fraction(2997, 100)
    assert BuildSettings(sets=(SetSettings(videos={"val": 1}),)).seed == 0
