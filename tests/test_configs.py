"""Every configuration in configs/ can be composed, has the right types and can be built."""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from detector import choices
from detector.builders.data import build_transform
from detector.builders.model import build_model
from detector.builders.training import build_lr_schedule, build_optimizer
from detector.command_configs import parse_evaluate, parse_export, parse_predict, with_nms
from detector.config import ConfigError, config_hash, parse_data, parse_train, to_plain
from detector.model.deformable_conv import DeformableConv2d
from detector.model.resnet import norm_layer, placement, resnet
from detector.schema import TrainConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PATHS = ["data.root=ROOT"]


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def train_config(*overrides: str) -> TrainConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return parse_train(compose("train", overrides=list(overrides)))


@pytest.mark.parametrize("name", names("model"))
def test_models(name: str) -> None:
    config = train_config(f"model={name}", "model.weights=null")
    build_model(config.model, config.deform, config.data.transform, 3)


@pytest.mark.parametrize("name", [name for name in names("model") if name.endswith("_fpn")])
def test_networks_with_an_fpn_differ_only_in_their_backbone(name: str) -> None:
    usual = train_config("model=resnet50_fpn").model
    assert train_config(f"model={name}").model == replace(usual, backbone=name[: -len("_fpn")])


@pytest.mark.parametrize("name", names("deform"))
def test_deform_choices_differ_only_in_placement_and_version(name: str) -> None:
    deform, plain = (train_config(f"deform={choice}").deform for choice in (name, "none"))
    place = {key: getattr(plain, key) for key in ("stages", "last_layers", "version")}
    assert replace(deform, **place) == plain


@pytest.mark.parametrize("name", names("deform"))
def test_deforms(name: str) -> None:
    config = train_config(f"deform={name}", "model.backbone=resnet50")
    model = build_model(config.model, config.deform, config.data.transform, 3)
    layers = [m for m in model.modules() if isinstance(m, DeformableConv2d)]
    if name == "none":
        assert not layers
        return
    place, version = name.split("_")
    counts = {"c5": 3, "c4-c5": 9, "c3-c5": 13, "c2-c5": 16}
    assert len(layers) == (int(place[4:]) if place.startswith("last") else counts[place])
    assert all(bool(layer.num_masks) == (version == "v2") for layer in layers)


@pytest.mark.parametrize("name", names("schedule"))
def test_schedules(name: str) -> None:
    config = train_config(f"schedule={name}")
    model = build_model(config.model, config.deform, config.data.transform, 3)
    optimizer = build_optimizer(model, config.schedule, *multipliers(config))
    build_lr_schedule(optimizer, config.schedule, steps_per_epoch=10)


@pytest.mark.parametrize("name", names("data"))
def test_data(name: str) -> None:
    splits = ["data.root=x"]
    if name == "coco":
        splits += [f"data.{s}.{k}=x" for s in ("train", "val") for k in ("images", "annotations")]
    config = train_config(f"data={name}", *([] if name == "shapes" else splits))
    assert config.data.format == name
    build_transform(config.data.transform)


AUGMENTED_BY = ["flip_probability", "crop_probability"]
COLORED_BY = ["brightness", "contrast", "saturation", "hue"]


@pytest.mark.parametrize("name", names("augment"))
@pytest.mark.parametrize("data", names("data"))
def test_augments(name: str, data: str) -> None:
    splits = [f"data.{s}.{k}=x" for s in ("train", "val") for k in ("images", "annotations")]
    words = {"coco": splits, "voc": ["data.root=x"], "shapes": []}[data]
    transform = train_config(f"data={data}", f"augment={name}", *words).data.transform
    build_transform(transform)
    geometry = [getattr(transform, key) for key in AUGMENTED_BY]
    colors = [getattr(transform, key) for key in COLORED_BY]
    assert geometry == {"none": [0, 0], "flip": [0.5, 0], "strong": [0.5, 0.5]}[name]
    assert all(0 < s < 0.5 for s in colors) if name == "strong" else colors == [0] * 4
    if name == "flip":  # the default choice
        assert train_config(f"data={data}", *words).data.transform == transform


def test_one_value_of_an_augment() -> None:
    config = train_config("augment=strong", "data.transform.flip_probability=0.3")
    assert config.data.transform.flip_probability == 0.3
    assert config.data.transform.crop_probability == 0.5


@pytest.mark.parametrize(
    "name, augment",
    [("aquarium_mini", "strong"), ("coco_r50_1x", "flip"), ("voc0712_r50", "flip")],
)
def test_the_augment_of_an_experiment(name: str, augment: str) -> None:
    own = train_config(f"+experiment={name}", *PATHS)
    assert own == train_config(f"+experiment={name}", f"augment={augment}", *PATHS)
    bare = train_config(f"+experiment={name}", "augment=none", *PATHS)
    assert bare.data.transform.flip_probability == 0 and bare != own


@pytest.mark.parametrize("name", names("experiment"))
def test_experiments(name: str) -> None:
    config = train_config(f"+experiment={name}", *PATHS)
    header = (CONFIGS / "experiment" / f"{name}.yaml").read_text()
    assert f"python train.py +experiment={name}" in header
    assert config.data.root == "ROOT"


@pytest.mark.parametrize("name", names("ablation"))
def test_ablations(name: str) -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        params = compose(
            "train", overrides=[f"+ablation={name}"], return_hydra_config=True
        ).hydra.sweeper.params
    for key, values in params.items():
        for value in str(values).split(","):
            config = train_config(f"+ablation={name}", f"{key}={value}")
            config.model.backbone = "resnet50"
            build_model(config.model, config.deform, config.data.transform, 3)


TABLE_3 = {  # rows of Dai et al. 2017: deformable stages, dilation of c5, RoI pooling
    "dilation_2": ("none", 2, "align"),
    "dilation_4": ("none", 4, "align"),
    "dilation_6": ("none", 6, "align"),
    "dilation_8": ("none", 8, "align"),
    "deform_conv": ("c5", 2, "align"),
    "deform_roi_pool": ("none", 2, "deform_v1"),
    "both": ("c5", 2, "deform_v1"),
}


@pytest.mark.parametrize("experiment", [[], ["+experiment=voc0712_r101_dc5", *PATHS]])
@pytest.mark.parametrize("row", TABLE_3)
def test_rows_of_the_papers_table_3(row: str, experiment: list[str]) -> None:
    """A row has the same effect before and after an experiment. Hydra's sweeper puts it before."""
    words = [f"+ablation/paper_table3={row}", "+ablation=paper_table3"]
    for order in ([*words, *experiment], [*experiment, *words]):
        config = train_config(*order)
        model, deform = config.model, config.deform
        assert (deform.stages, model.c5_dilation, model.roi_pool) == TABLE_3[row]
        assert (deform.version, deform.last_layers, model.neck) == ("v1", None, "dc5")
        assert model.backbone == ("resnet101" if experiment else "resnet10")


def test_the_rows_are_those_of_the_sweep() -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        words = ["+ablation=paper_table3"]
        composed = compose("train", overrides=words, return_hydra_config=True)
    assert composed.hydra.sweeper.params == {"+ablation/paper_table3": ",".join(TABLE_3)}
    assert names("ablation/paper_table3") == sorted(TABLE_3)


@pytest.mark.parametrize("command", ["none", "c3-c5_v1", "c3-c5_v2"])
def test_the_command_line_wins_over_a_recipe(command: str) -> None:
    config = train_config("+experiment=coco_r50_1x", f"deform={command}", *PATHS)
    assert f"{config.deform.stages}_{config.deform.version}".startswith(command)


@pytest.mark.parametrize(
    "override, message",
    [
        ("schedule.epochs=many", r"^schedule\.epochs: Value 'many'"),
        ("+model.depth=3", r"^model\.depth: Key 'depth' not in 'ModelConfig'"),
        ("+data.transform.mixup=1", r"^data\.transform\.mixup: "),
        ("data.num_train=few", r"^data\.num_train: Value 'few'"),
        ("data.format=yolo", r"^data\.format=yolo must be one of coco, voc, shapes"),
        ("model.anchor_sizes=[a]", r"^model\.anchor_sizes\[0\]: "),
        ("model.roi_pool=max", r"^model\.roi_pool=max must be one of align, deform_v1, deform_v2"),
        ("model.nms=soft", r"^model\.nms=soft must be one of hard, soft_linear, soft_gaussian"),
        ("model.nms_iou=1.5", r"^model\.nms_iou=1\.5 must be in \[0, 1\]"),
        ("model.nms_sigma=0", r"^model\.nms_sigma=0\.0 must be more than 0"),
        ("model.rpn_channels=0", r"^model\.rpn_channels=0 must be at least 1"),
    ],
)
def test_refusals_name_the_full_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_config(override)


@pytest.mark.parametrize(
    "override, message",
    [
        ("deform.version=v3", "deform.version=v3"),
        ("deform.stages=c7", "deform.stages=c7"),
        ("deform.offset_groups=7", "deform.offset_groups=7"),
        ("model.backbone=resnet19", "model.backbone=resnet19"),
        ("model.norm=none", "model.norm=none"),
        ("model.neck=pan", "model.neck=pan must be one of fpn, dc5"),
        ("model.neck=dc5", "model.neck=dc5 needs model.c5_dilation of 2 or more"),
    ],
)
def test_values_out_of_range_are_errors_of_the_configuration(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config = train_config(override)
        build_model(config.model, config.deform, config.data.transform, 3)


REFUSED_WITHOUT_TORCH = {
    "metric=f1": "metric=f1",
    "precision=int8": "precision=int8",
    "model.backbone=resnet19": "model.backbone=resnet19",
    "model.norm=none": "model.norm=none",
    "model.neck=pan": "model.neck=pan",
    "model.neck=dc5": "model.neck=dc5 needs model.c5_dilation of 2 or more",
    "model.anchor_sizes=[8]": r"model.anchor_sizes=\[8\] must be five sizes",
    "model.trainable_layers=6": "model.trainable_layers=6 must be from 0 to 5",
    "model.roi_pool=max": "model.roi_pool=max",
    "model.nms=soft": "model.nms=soft",
    "deform.stages=c7": "deform.stages=c7",
    "deform.version=v3": "deform.version=v3",
    "schedule.optimizer=lion": "schedule.optimizer=lion",
    "schedule.decay=linear": "schedule.decay=linear",
    "data.on_error=skip": "data.on_error=skip",
    "data.transform.train_min_sizes=[]": r"train_min_sizes=\[\] must be sizes",
    "data.transform.flip_probability=2": r"flip_probability=2.0 must be in \[0, 1\]",
    "data.transform.hue=0.6": r"data.transform.hue=0.6 must be in \[0, 0.5\]",
}


@pytest.mark.parametrize("override", REFUSED_WITHOUT_TORCH)
def test_values_that_are_refused_where_the_configuration_is_read(override: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED_WITHOUT_TORCH[override]):
        train_config(override)


@pytest.mark.parametrize("module", ["config", "command_configs"])
def test_the_configuration_is_read_without_torch(module: str) -> None:
    code = f"import sys, detector.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CONFIGS.parent).returncode == 0


def test_every_choice_of_a_model_can_be_built() -> None:
    """A name that is only in `choices.py` would be refused late, and with another message."""
    for name in choices.BACKBONES:
        resnet(name=name, norm="group", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False)
    for name in choices.NORMS:
        norm_layer(name, 1e-5)
    body = resnet(name="resnet10", norm="batch", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False)
    counts = [len(placement(body, stages=name, last_layers=None)) for name in choices.STAGES]
    assert counts == [0, 2, 4, 6, 8]  # two 3x3 convolutions of one basic block in each stage


def test_arms_start_from_equal_weights() -> None:
    states = []
    for deform in ("none", "c3-c5_v2", "last2_v1"):
        config = train_config(f"deform={deform}")
        torch.manual_seed(4)
        model = build_model(config.model, config.deform, config.data.transform, 3)
        states.append(model.state_dict())
    for state in states[1:]:
        assert state.keys() > states[0].keys()
        assert all(torch.equal(state[name], states[0][name]) for name in states[0])


def multipliers(config: TrainConfig) -> tuple[float, float]:
    return config.deform.offset_lr_multiplier, config.model.roi_offset_lr_multiplier


def test_offsets_learn_at_a_rate_of_their_own() -> None:
    config = train_config(
        *("schedule=1x", "deform.offset_lr_multiplier=0.25", "model.roi_pool=deform_v2"),
        "model.roi_offset_lr_multiplier=0.5",
    )
    model = build_model(config.model, config.deform, config.data.transform, 3)
    optimizer = build_optimizer(model, config.schedule, *multipliers(config))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = 0.005 if ".conv_offset." in name else 0.01 if ".fc_offset." in name else 0.02
        assert rates[id(parameter)] == expected, name


@pytest.mark.parametrize("norm, trainable_layers", [("batch", 5), ("group", 5), ("group", 2)])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_rate_and_decay_of_each_parameter(norm: str, trainable_layers: int, optimizer: str) -> None:
    config = train_config(
        *("model.backbone=resnet10", f"model.norm={norm}", f"schedule.optimizer={optimizer}"),
        *(f"model.trainable_layers={trainable_layers}", "deform.offset_lr_multiplier=0.25"),
        *("schedule.lr=0.02", "schedule.batch_size=8", "schedule.lr_batch_size=16"),
        *("schedule.weight_decay=0.5", "schedule.norm_weight_decay=0.125"),
    )
    model = build_model(config.model, config.deform, config.data.transform, 3)
    groups = build_optimizer(model, config.schedule, *multipliers(config)).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    assert len(found) == sum(len(group["params"]) for group in groups)  # no parameter is in two
    # With half the batch the rate is 0.02 * 8 / 16 = 0.01; that of the offsets is a quarter of it.
    expected = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if ".conv_offset." in name:
            expected[name] = (0.0025, 0.5)
        elif re.search(r"\.bn\d\.|\.downsample\.1\.", name):
            expected[name] = (0.01, 0.125)
        else:
            expected[name] = (0.01, 0.5)
    assert found == expected and len(set(expected.values())) == 3


def test_frozen_norms_have_no_group() -> None:
    config = train_config("model=resnet18_fpn", "model.weights=null", "deform=none")
    model = build_model(config.model, config.deform, config.data.transform, 3)
    (group,) = build_optimizer(model, config.schedule, 1.0, 1.0).param_groups
    assert group["weight_decay"] == config.schedule.weight_decay
    learning = [p for p in model.parameters() if p.requires_grad]
    assert len(learning) < len(list(model.parameters()))
    assert {id(p) for p in group["params"]} == {id(p) for p in learning}


def test_another_nms_than_that_of_the_training() -> None:
    trained = train_config("model.nms_sigma=0.3")
    assert with_nms(trained, None, None, None) == trained
    other = with_nms(trained, "soft_gaussian", 0.4, None)
    assert other.model == replace(trained.model, nms="soft_gaussian", nms_iou=0.4)
    assert trained.model.nms == "hard"


@pytest.mark.parametrize(
    "parse_command, given",
    [
        (parse_evaluate, ["checkpoint=x", "output=x"]),
        (parse_predict, ["checkpoint=x", "images=x", "output=x"]),
        (parse_export, ["checkpoint=x", "output=x"]),
    ],
)
def test_commands_refuse_an_nms(parse_command: Callable, given: list[str]) -> None:
    name = parse_command.__name__.removeprefix("parse_")
    refused = {"nms=soft": "nms=soft must be one of hard, soft_linear, soft_gaussian"}
    if name != "export":
        refused["nms_iou=-1"] = r"nms_iou=-1\.0 must be in \[0, 1\]"
        refused["nms_sigma=0"] = r"nms_sigma=0\.0 must be more than 0"
    for word, message in refused.items():
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = compose(name, overrides=[*given, word])
        with pytest.raises(ConfigError, match=f"^{message}"):
            parse_command(config)


def test_a_configuration_survives_its_plain_form() -> None:
    config = train_config("model.c5_dilation=2")
    again = parse_train(to_plain(config))
    assert again == config and config_hash(again) == config_hash(config)
    assert config_hash(train_config()) != config_hash(config)
    with pytest.raises(ConfigError, match="data.format"):
        parse_data({"format": None})
