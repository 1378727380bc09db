"""Cells to steps: what is shared, what makes a step another one, and which parameters are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvid_train.ablation.plan import Run, check_runs
from longvid_train.ablation.recipe import Recipe
from longvid_train.ablation.references import filled, references
from longvid_train.ablation.settings import with_settings
from longvid_train.ablation.sweep import Sweep
from longvid_train.errors import UserError

Plan = Callable[..., tuple[Sweep, Recipe, list[Run]]]
WORLD = {"seed": 3, "sets": [{"name": "a", "videos": {"test": 2}}]}
RECIPE: dict[str, Any] = {
    "steps": {
        "world": {"run": "world", "set": WORLD},
        "spare": {"run": "world", "set": WORLD | {"seed": 9}},
        "shown": {"run": "adaptation", "set": {"plan.kind": "uniform"}},
        "evaluate": {
            "run": "evaluate",
            "set": {
                "model": "models/nothing",
                "manifests": ["${world}/a/test/manifest.jsonl"],
                "adaptation": "${shown}",
                "seed": "${seed}",
            },
        },
    },
    "choices": {"window": {"none": {}, "ntk": {"shown.window.kind": "ntk"}}},
    "result": "evaluate",
}


def steps(run: Run) -> dict[str, str]:
    return {step.name: step.identity for step in run.result.in_order()}


def test_cells_and_seeds_share_what_is_the_same(planned: Plan) -> None:
    _, _, runs = planned(RECIPE, (0, 1), window=["none", "ntk"])
    plain, ntk, plain_1, _ = (steps(run) for run in runs)
    assert [(run.name, run.seed) for run in runs] == [
        ("window=none", 0),
        ("window=ntk", 0),
        ("window=none", 1),
        ("window=ntk", 1),
    ]
    assert list(plain) == ["world", "shown", "evaluate"], "inputs first, and not what nothing refers to"
    assert plain["world"] == ntk["world"] and plain["shown"] != ntk["shown"]
    assert plain["world"] == plain_1["world"] and plain["shown"] == plain_1["shown"]
    assert len({steps(run)["evaluate"] for run in runs}) == 4, "the seed and the adaptation decide the answers"


def test_a_reference_becomes_the_output_of_the_step(planned: Plan, tmp_path: Path) -> None:
    _, _, (run,) = planned(RECIPE, (7,), window=["ntk"])
    values = run.result.resolved(tmp_path)
    world, shown = run.result.inputs["world"], run.result.inputs["shown"]
    assert values["seed"] == 7 and type(values["seed"]) is int
    assert values["manifests"] == [f"{tmp_path}/steps/world-{world.identity[:12]}/out/a/test/manifest.jsonl"]
    assert values["adaptation"] == f"{tmp_path}/steps/shown-{shown.identity[:12]}/out/adaptation.yaml"


def test_the_identity_follows_contents_and_not_places(planned: Plan, tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("frames: 4\n")
    changed = {**RECIPE, "steps": {**RECIPE["steps"], "shown": {"run": "adaptation", "config": str(file)}}}
    before = steps(planned(changed, window=["none"])[2][0])
    (tmp_path / "other.yaml").write_text("frames: 4  # a remark\n")
    changed["steps"]["shown"] = {"run": "adaptation", "config": str(tmp_path / "other.yaml")}
    assert steps(planned(changed, window=["none"])[2][0]) == before
    (tmp_path / "other.yaml").write_text("frames: 5\n")
    after = steps(planned(changed, window=["none"])[2][0])
    assert after["shown"] != before["shown"] and after["evaluate"] != before["evaluate"]
    assert after["world"] == before["world"]


def test_a_file_that_settings_name_is_part_of_the_identity(planned: Plan, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "weights.bin").write_bytes(b"one")
    found = []
    for content in (b"one", b"two", b"one"):
        (adapter / "weights.bin").write_bytes(content)
        found.append(steps(planned(RECIPE, **{"evaluate.adapter": [str(adapter)]})[2][0])["evaluate"])
    assert found[0] == found[2] != found[1]


def test_any_key_of_a_step_can_be_a_parameter(planned: Plan, tmp_path: Path) -> None:
    _, _, runs = planned(RECIPE, **{"evaluate.frames": [4, 8], "shown.window.kind": ["ntk", "yarn"]})
    assert [run.name for run in runs][:2] == ["frames=4,kind=ntk", "frames=4,kind=yarn"]
    assert [run.result.config["frames"] for run in runs] == [4, 4, 8, 8]
    check_runs(runs, tmp_path, "grid", lambda words: None)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"windows": ["none"]}, "parameter 'windows' is unknown; did you mean 'window'"),
        ({"window": ["nkt"]}, "window has no choice 'nkt'; did you mean 'ntk'"),
        ({"evaluat.frames": [4]}, "parameter 'evaluat.frames' is unknown"),
        ({"spare.seed": [1]}, "'spare.seed' has no effect: no cell runs the step 'spare'"),
        ({"evaluate.model": ["${world}"]}, "references stand in"),
        ({"window": ["ntk"], "shown.window.kind": ["yarn"]}, "sets 'shown.window.kind', which another one sets"),
    ],
)
def test_a_parameter_that_means_nothing_is_refused(
    planned: Plan, parameters: dict[str, list[Any]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        planned(RECIPE, **parameters)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"evaluate.frame": [4]}, "step 'evaluate': 'frame' is unknown; did you mean 'frames'"),
        ({"evaluate.frames": ["many"]}, "frames is 'many'; it must be a whole number"),
        ({"shown.window.kind": ["nkt"]}, "step 'shown': window: kind 'nkt' is unknown; did you mean 'ntk'"),
        ({"world.sets": ["none"]}, "step 'world': 'sets' must be a list of sets"),
    ],
)
def test_a_key_that_no_config_has_is_refused_by_the_commands_own_reader(
    planned: Plan, tmp_path: Path, parameters: dict[str, list[Any]], message: str
) -> None:
    _, _, runs = planned(RECIPE, **parameters)
    with pytest.raises(UserError, match=message):
        check_runs(runs, tmp_path, "grid", lambda words: None)


def broken(**changes: Any) -> dict[str, Any]:
    return {**RECIPE, **changes}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (broken(result="world"), "result is 'world'; it must name a step that answers questions: evaluate"),
        (broken(step=1), "'step' is unknown; did you mean 'steps'"),
        (broken(steps={"a": {"run": "evaluat"}}), "run is 'evaluat'; did you mean 'evaluate'"),
        (broken(steps={"seed": {"run": "world"}}), "not 'seed'"),
        (broken(steps={"a": {"run": "evaluate", "set": {"model": "${b}"}}}), r"\$\{b\} is no earlier step"),
        (broken(choices={"c": {"x": {"wrld.seed": 1}}}), "'wrld.seed' is no setting of a step; did you mean 'world'"),
        (broken(choices={"c": {"x": {"world.seed": "${evaluate}"}}}), "is no earlier step"),
        (broken(choices={"c": {}}), "must map values to settings"),
    ],
)
def test_a_broken_recipe_is_one_line(planned: Plan, recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planned(recipe, window=["none"])


def test_names_of_cells_tell_them_apart_as_folders(planned: Plan, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text("{}\n")
    files = [str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")]
    assert [run.name for run in planned(RECIPE, **{"shown.config": files})[2]] == ["config=one", "config=two"]
    odd = [run.name for run in planned(RECIPE, **{"evaluate.prompt": ["a b", "a/b", "ä:b", "x" * 300]})[2]]
    assert len(set(odd)) == 4 and all("/" not in name and " " not in name and len(name) <= 100 for name in odd)
    assert [run.name for run in planned(RECIPE, window=["none"])[2]] == ["all"]


def test_settings_go_under_a_class_as_on_lightnings_command_line() -> None:
    values = {"model": {"class_path": "a.B", "init_args": {"lr": 1, "stage": {"name": "x"}}}, "seed": 1}
    found = with_settings(values, {"model.stage.name": "y", "model.init_args.lr": 2, "seed": 5, "new.deep.key": [1]})
    assert found == {
        "model": {"class_path": "a.B", "init_args": {"lr": 2, "stage": {"name": "y"}}},
        "seed": 5,
        "new": {"deep": {"key": [1]}},
    }
    assert with_settings(values, {"model.class_path": "a.C"})["model"]["class_path"] == "a.C"
    assert values["model"]["init_args"] == {"lr": 1, "stage": {"name": "x"}}, "the base is left alone"


@given(st.recursive(st.integers() | st.text(max_size=3) | st.booleans() | st.none(), st.lists, max_leaves=6))
def test_values_without_references_are_filled_with_themselves(value: object) -> None:
    assert references(value) == () and filled(value, {}) == value


@given(st.integers() | st.text(max_size=3))
def test_a_reference_alone_keeps_the_type_and_one_in_a_text_does_not(value: object) -> None:
    assert references({"a": ["${x}", "b/${x}/${y}"], "c": "${y}"}) == ("x", "y")
    assert filled(["${x}", "b/${x}"], {"x": value}) == [value, f"b/{value}"]
