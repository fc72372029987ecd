"""Rows of the tables: what each trains, and that nothing else differs."""

from __future__ import annotations

import pytest
from conftest import train_options
from PIL import Image

from fgvc_cli.config import TrainConfig, build
from fgvc_cli.engine.ablate import ABLATIONS, ablate, find_ablation, table_cells
from fgvc_cli.engine.options import AblateOptions, TrainOptions
from fgvc_cli.engine.train import plain_values, resolved_config
from fgvc_cli.errors import EXIT_USAGE, FgvcError


def configs(name: str, model: str, *sets: str, **flags) -> dict[str, TrainConfig]:
    values = plain_values(train_options(sets, model=model, input_px=64, **flags))
    return {cell.name: build(TrainConfig, cell.values) for cell in table_cells(ABLATIONS[name], values, [0])}


def test_table3_is_the_papers_rows_and_the_heads_alone():
    rows = configs("table3", "crasmra-resnet10t")
    assert list(rows) == ["plain-s0", "heads-s0", "cbam-s0", "cram-s0", "cram+smram-s0"]
    assert rows["plain-s0"].model == "timm-resnet10t"
    own = {name: row.options for name, row in rows.items() if row.model == "crasmra-resnet10t"}
    switches = ("channel_attention", "smram")
    assert {name: {k: options[k] for k in switches} for name, options in own.items()} == {
        "heads-s0": {"channel_attention": "none", "smram": False},
        "cbam-s0": {"channel_attention": "cbam", "smram": False},
        "cram-s0": {"channel_attention": "cram", "smram": False},
        "cram+smram-s0": {"channel_attention": "cram", "smram": True},
    }
    rest = [{k: v for k, v in options.items() if k not in switches} for options in own.values()]
    assert all(each == rest[0] for each in rest), "nothing else differs"


@pytest.mark.parametrize("recipe", ["crasmra-paper", "strong"])
def test_masks_compares_the_papers_mlp_with_one_that_stays_alive(recipe):
    rows = configs("masks", "crasmra-resnet10t", recipe=recipe)
    assert list(rows) == [
        f"{name}-s0" for name in ("plain", "heads", "cbam", "cram-paper", "cram-alive", "cram-alive+smram")
    ]
    masks = {
        name: (row.options.get("mask_norm", "none"), row.options.get("min_hidden", 1))
        for name, row in rows.items()
    }
    assert masks["cram-paper-s0"] == ("none", 1)
    assert masks["cram-alive-s0"] == masks["cram-alive+smram-s0"] == ("layer", 32)
    assert rows["cram-paper-s0"].optim == rows["cram-alive-s0"].optim, "only the MLP differs"


@pytest.mark.parametrize("recipe", ["crasmra-paper", "strong"])
def test_the_plain_backbone_is_a_fair_baseline(recipe):
    """Same epochs, augmentation, batch and rates; its classifier learns at the rate of the modules' parts."""
    rows = configs("table3", "crasmra-resnet10t", "options.padding=own", recipe=recipe)
    plain, full = rows["plain-s0"], rows["cram+smram-s0"]
    assert plain.optim.lr_heads == max(full.optim.lr_heads, full.optim.lr_cram)
    own = plain.optim.model_dump(include={"lr_heads", "lr_cram", "lr_smram", "lr_mask"})
    equal = {"optim": full.optim.model_copy(update=own), "model": plain.model}
    assert plain == full.model_copy(update=equal | {"options": plain.options})
    assert set(plain.options) <= {"padding", "drop_path"} and plain.options["padding"] == "own"


def test_the_plain_backbone_has_no_rate_of_masks():
    rows = configs("table3", "crasmra-resnet10t", "optim.lr_mask=0.001")
    assert rows["cram-s0"].optim.lr_mask == 0.001 and rows["plain-s0"].optim.lr_mask is None


def test_several_labels_per_image_are_refused_before_anything_is_trained(tmp_path):
    rows = ["path,labels,split"]
    for split in ("train", "val", "test"):
        for name in ("red", "blue"):
            file = tmp_path / f"{split}-{name}.png"
            Image.new("RGB", (32, 32), name).save(file)
            rows.append(f"{file.name},{name}|plain,{split}")
    (tmp_path / "several.csv").write_text("\n".join(rows))
    options = AblateOptions(
        "crasmra-resnet10t", data=str(tmp_path / "several.csv"), input_px=32, out=tmp_path / "out", quiet=True
    )
    with pytest.raises(FgvcError, match="several labels per image"):
        ablate.run(options)
    assert not (tmp_path / "out").exists()


def test_a_head_that_learns_faster_than_the_modules_keeps_its_rate():
    sets = ["optim.lr_heads=0.03", "optim.lr_cram=0.01", "options.delta=0.8"]
    plain = configs("table3", "crasmra-resnet10t", *sets)["plain-s0"]
    assert plain.optim.lr_heads == 0.03 and plain.options == {}


def test_a_sweep_changes_its_setting_alone():
    rows = configs("delta", "crasmra-resnet10t")
    assert [row.options["delta"] for row in rows.values()] == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert len({row.model_copy(update={"options": {}}).model_dump_json() for row in rows.values()}) == 1
    assert [row.loss.gamma for row in configs("gamma", "crasmra-resnet10t").values()] == [0, 0.5, 1, 1.5, 2]


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_row_of_every_table_can_be_built_and_the_reference_is_one(name):
    ablation = ABLATIONS[name]
    model = "vitms-test_vit" if ablation.family == "vitms" else "crasmra-resnet10t"
    values = plain_values(TrainOptions(model, input_px=160))
    cells = table_cells(ablation, values, [3])
    built = [resolved_config(cell.values) for cell in cells]
    assert len({config.model_dump_json() for config in built}) == len(cells) > 1
    assert {config.seed for config in built} == {3}
    assert ablation.reference in [cell.variant for cell in cells]
    assert all("/" not in cell.name and "," not in cell.name and " " not in cell.name for cell in cells)


def test_the_reference_of_a_crasmra_sweep_is_the_default():
    usual = resolved_config(plain_values(TrainOptions("crasmra-resnet10t", input_px=64)))
    # Not head-pool: its reference is what was measured to be best, the recipe has what the relatives do.
    for name in ("delta", "gamma", "necks", "smram-map"):
        values = plain_values(TrainOptions("crasmra-resnet10t", input_px=64))
        cells = {cell.variant: cell for cell in table_cells(ABLATIONS[name], values, [0])}
        assert resolved_config(cells[ABLATIONS[name].reference].values) == usual


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("table3", "timm-resnet10t", "crasmra- model apart, got timm-resnet10t.*--model crasmra-"),
        ("delta", "vitms-test_vit", "For vitms- there is --ablate stages"),
        ("stages", "crasmra-resnet10t", "table3, masks, delta, gamma"),
    ],
)
def test_a_table_is_for_one_family(name, model, message):
    with pytest.raises(FgvcError, match=message) as caught:
        configs(name, model)
    assert caught.value.exit_code == EXIT_USAGE


def test_an_unknown_table_names_the_nearest():
    with pytest.raises(FgvcError, match="got 'table-3', expected table3, .*Nearest: table3"):
        find_ablation("table-3")


def test_plain_vits_of_the_stages_table_see_what_the_encoder_sees_or_as_much_as_all_crops():
    values = {
        "model": "vitms-vit_tiny_patch16_224",
        "options": {"encoder_px": 160},
        "preprocess": {"input_px": 320, "resize_px": 320},
        "optim": {"lr_heads": 1e-3},
    }
    cells = {cell.variant: cell.values for cell in table_cells(ABLATIONS["stages"], values, [0])}
    for name, side in (("plain", 160), ("plain-equal", 320)):
        assert cells[name]["model"] == "timm-vit_tiny_patch16_224"
        assert cells[name]["preprocess"]["input_px"] == side
        assert cells[name]["optim"]["lr_heads"] == 1e-3
